"""Between detection and captions: sentences made of class names, and classes made of phrases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from grounding_dino.data.convert_formats import NAME_MODES
from grounding_dino.text.prompt import build_category_prompts, normalised_name
from grounding_dino.text.tokenizer import build_tokenizer

Record = dict[str, Any]
Span = tuple[int, int]


class NameSentences:
    """Writes the class names of a picture as sentences "a. b. c.", each as many names as a prompt holds (256 tokens).

    The tokens of such a sentence are those of Grounding DINO's category prompt of the same names, and so are its
    attention segments where no name contains "." or "?". (GLIP's category prompts lack the last period.)

    Args:
        names: of all classes; names that differ only in case or spaces are written once.
        mode: "all" lists every name in each picture's sentences, so that absent classes are negatives; "present" those
            of its objects; "auto" lists all if one sentence holds them, else the present ones.

    Raises:
        ValueError: unknown mode, no name, or one that no prompt holds.
    """

    def __init__(self, names: Sequence[str], mode: str = "auto") -> None:
        if mode not in NAME_MODES:
            raise ValueError(f"unknown choice of names {mode!r}; choose from {NAME_MODES}")
        self.names = list(names)
        everything = self._chunks(range(len(self.names)))
        self._all = everything if mode == "all" or (mode == "auto" and len(everything) == 1) else None

    def __call__(self, record: Record) -> Iterator[Record]:
        """The sentences of a record of class names; one without any name to list has none."""
        present = sorted({annotation["category_id"] for annotation in record["annotations"]})
        for chunk in self._all if self._all is not None else self._chunks(present):
            places = {normalised_name(self.names[index]): place for place, index in enumerate(chunk)}
            caption, spans = _sentence([self.names[index] for index in chunk])
            annotations = []
            for annotation in record["annotations"]:
                place = places.get(normalised_name(self.names[annotation["category_id"]]))
                if place is not None:
                    annotations.append({**annotation, "category_id": place})
            yield {
                **record,
                **{"original_img_id": record["image_id"], "caption": caption, "phrases": spans},
                **{"annotations": annotations},
            }

    def _chunks(self, indices: Sequence[int]) -> list[list[int]]:
        first = {normalised_name(self.names[index]): index for index in reversed(indices)}
        chosen = sorted(first.values())
        if not chosen:
            return []
        prompts = build_category_prompts([self.names[index] for index in chosen], build_tokenizer())
        return [[chosen[place] for place in prompt.category_indices] for prompt in prompts]


def _sentence(names: Sequence[str]) -> tuple[str, list[list[Span]]]:
    """ "a. b." and where each name stands in it."""
    parts: list[str] = []
    spans, end = [], 0
    for name in names:
        text = " ".join(name.split())
        spans.append([(end, end + len(text))])
        parts.append(f"{text}.")
        end += len(text) + 2
    return " ".join(parts), spans


def phrase_names(record: Record) -> list[str]:
    """Each phrase of a caption as the name of a class: lower case, its parts joined by spaces."""
    caption = record["caption"]
    return [normalised_name(" ".join(caption[start:stop] for start, stop in spans)) for spans in record["phrases"]]
