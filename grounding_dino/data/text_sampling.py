"""Which names a training prompt lists, and how a mirrored picture changes its words of place.

All random draws use numpy's global generator, which the data loader seeds per sample, as Detectron2's augmentations do.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

from grounding_dino.text.prompt import encode_name, normalised_name
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import WordPieceTokenizer

import numpy as np

_LEFT_RIGHT = {"left": "right", "leftmost": "rightmost"}
_UP_DOWN = {
    "above": "below",
    "top": "bottom",
    "topmost": "bottommost",
    "upper": "lower",
    "uppermost": "lowermost",
    "highest": "lowest",
}
_SIDES, _HEIGHTS = ({**pairs, **{b: a for a, b in pairs.items()}} for pairs in (_LEFT_RIGHT, _UP_DOWN))


def name_cost(name: str, tokenizer: WordPieceTokenizer) -> int:
    """Tokens that a name takes in a prompt of categories, with its closing period, without [CLS] and [SEP]."""
    return len(encode_name(name, tokenizer)) + 1


@functools.lru_cache(maxsize=1 << 16)
def alternatives(name: str) -> tuple[str, ...]:
    """The names that "cup/mug" stands for, one for each part with a letter or digit; else the name itself."""
    parts = tuple(part.strip() for part in name.split("/") if any(map(str.isalnum, part)))
    return parts or (name,)


@functools.lru_cache(maxsize=256)
def _most_names(names: tuple[str, ...], budget: int, tokenizer: WordPieceTokenizer, split: bool = False) -> int:
    """How many of the names fit into `budget` tokens at most: the cheapest ones."""
    costs = (min(name_cost(part, tokenizer) for part in (alternatives(name) if split else (name,))) for name in names)
    return sum(total <= budget for total in itertools.accumulate(sorted(costs)))


class TextSampler:
    """Draws the names of training prompts within a token budget.

    Args:
        num_negatives: names of absent categories a prompt; -1 lists all that fit.
        full_probability: how often all `num_negatives` are listed; else their number is uniform from 1.
        shuffle: random order of the names; else the data set's.
        prompts: what a prompt of the model holds; by default one of :class:`PromptBuilder`'s own.
        split_names: a prompt asks for "cup/mug" by one of its parts, drawn at random; else by the name as it is.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        *,
        num_negatives: int = -1,
        full_probability: float = 0.5,
        shuffle: bool = True,
        prompts: PromptBuilder | None = None,
        split_names: bool = False,
    ) -> None:
        if num_negatives < -1:
            raise ValueError(f"the number of negative categories is {num_negatives}; use -1 (all) or 0 and more")
        if not 0 <= full_probability <= 1:
            raise ValueError(f"the probability of a full list of negatives is {full_probability}; use 0 to 1")
        prompts = PromptBuilder() if prompts is None else prompts
        if prompts.max_tokens < 4:
            raise ValueError(f"a prompt of {prompts.max_tokens} tokens holds no name; use at least 4")
        self.num_negatives = num_negatives
        self.full_probability = full_probability
        self.shuffle = shuffle
        self.split_names = split_names
        self.budget = prompts.names_budget
        self.tokenizer = prompts.tokenizer

    def word(self, names: Sequence[str]) -> list[str]:
        """The names as one prompt asks for them: where they are split, a part of each."""
        if not self.split_names:
            return list(names)
        choices = [alternatives(name) for name in names]
        return [parts[np.random.randint(len(parts))] if len(parts) > 1 else parts[0] for parts in choices]

    def sample_categories(
        self, names: Sequence[str], positives: Collection[int], wording: Sequence[str] | None = None
    ) -> list[int]:
        """Indices into `names`, in the order of the prompt: positives first while they fit, then drawn negatives.

        A name that also belongs to a positive (a category listed twice, or a part of one) is no negative.

        Args:
            wording: the names as this prompt asks for them, from :meth:`word`.
        """
        words = names if wording is None else wording
        present = {said for index in positives for said in self._readings(names[index])}
        absent = [index for index in range(len(names)) if present.isdisjoint(self._readings(names[index]))]
        chosen = self._fit(words, _shuffled(sorted(set(positives))), self.budget)
        left = self.budget - sum(name_cost(words[index], self.tokenizer) for index in chosen)
        count = self._negative_count(len(absent), has_positives=bool(chosen))
        chosen += self._fit(words, _shuffled(absent)[:count], left)
        return _shuffled(chosen) if self.shuffle else sorted(chosen)

    def most_categories(self, names: Sequence[str], num_positives: int) -> int:
        """Upper bound on what :meth:`sample_categories` draws for a picture of so many different positives."""
        wanted = len(names) if self.num_negatives == -1 else num_positives + self.num_negatives
        return min(wanted, _most_names(tuple(names), self.budget, self.tokenizer, self.split_names))

    def most_expressions(self, captions: Sequence[str], objects: Sequence[Hashable]) -> int:
        """Upper bound on what :meth:`sample_expressions` draws."""
        return min(len(set(objects)), _most_names(tuple(captions), self.budget, self.tokenizer))

    def sample_expressions(self, captions: Sequence[str], objects: Sequence[Hashable]) -> list[int]:
        """Indices of expressions that go into one prompt: of different objects each, any number that fits.

        `objects[i]` says what caption i refers to. Two captions of one object in a prompt would have to share a query.
        """
        taken: set[Hashable] = set()
        candidates = []
        for index in _shuffled(range(len(captions))):
            if objects[index] not in taken:
                taken.add(objects[index])
                candidates.append(index)
        count = int(np.random.randint(1, len(candidates) + 1)) if candidates else 0
        return self._fit(captions, candidates[:count], self.budget)

    def _readings(self, name: str) -> list[str]:
        """All that prompts may write for `name`."""
        return [normalised_name(part) for part in (alternatives(name) if self.split_names else (name,))]

    def _negative_count(self, available: int, has_positives: bool) -> int:
        if self.num_negatives == -1:
            return available
        count = self.num_negatives
        if count > 1 and np.random.random() >= self.full_probability:
            count = int(np.random.randint(1, count + 1))
        # A prompt needs a name: an empty picture gets at least one.
        return min(available, count if has_positives else max(1, count))

    def _fit(self, names: Sequence[str], indices: Sequence[int], budget: int) -> list[int]:
        """The indices, in order, whose names fit into `budget` tokens; a name too long for the rest is left out."""
        kept = []
        for index in indices:
            cost = name_cost(names[index], self.tokenizer)
            if cost <= budget:
                kept.append(index)
                budget -= cost
        return kept


def _shuffled(indices: Sequence[int]) -> list[int]:
    return [indices[place] for place in np.random.permutation(len(indices))]


def swap_sides(
    text: str, spans: Sequence[Sequence[int]] = (), *, horizontal: bool = True, vertical: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """`text` of a mirrored picture, its words of place exchanged, and the character spans moved along.

    A span that begins or ends inside an exchanged word grows to the whole word.

    Args:
        spans: begin and end of each, in characters of `text`.
        horizontal: the picture was mirrored left to right: "left", "leftmost" and their opposites change places.
        vertical: it was mirrored top to bottom: "above", "top", "topmost", "upper", "uppermost", "highest" and theirs.
    """
    opposites = {**(_SIDES if horizontal else {}), **(_HEIGHTS if vertical else {})}
    parts: list[str] = []
    starts: list[int] = []  # of each old character, where it begins in the new text
    stops: list[int] = []  # and where it ends
    length = end = 0
    for match in [*_finditer(opposites, text), None]:
        plain = text[end : match.start()] if match else text[end:]
        starts += range(length, length + len(plain))
        stops += range(length + 1, length + len(plain) + 1)
        parts.append(plain)
        length += len(plain)
        if match:
            word = _swapped_word(match.group(), opposites)
            starts += [length] * len(match.group())
            stops += [length + len(word)] * len(match.group())
            parts.append(word)
            length += len(word)
            end = match.end()
    moved = [(starts[begin], stops[stop - 1]) for begin, stop in spans]
    return "".join(parts), moved


def _finditer(words: Collection[str], text: str) -> Iterator[re.Match[str]]:
    return re.finditer(rf"\b({'|'.join(words)})\b", text, re.IGNORECASE) if words else iter(())


def _swapped_word(word: str, opposites: Mapping[str, str]) -> str:
    other = opposites[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
