"""Categories or a caption -> tokens, attention ranges, position ids and token spans.

Two kinds of prompt. *Categories*: a list of names, written as "a . b ." in the caption; every name keeps its own
token span, tracked while the caption is put together, and is one attention segment with its closing period,
even where the name itself contains a delimiter ("t.v.", "what?"). *Caption*: free text; its attention segments
end at its own delimiters, as in the authors' code (sub-sentence attention, Grounding DINO, section 3.4).

Without sub-sentences (GLIP) a prompt is one segment, as BERT was trained: names are written as "a. b", a caption is
read as it stands, with or without a period at its end, and one that is too long keeps its [SEP].
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import unicodedata
from collections.abc import Sequence
from typing import cast

from grounding_dino.structures import Prompt
from grounding_dino.text.names import normalised_name
from grounding_dino.text.segments import TokenRange, one_segment, segment_tokens
from grounding_dino.text.tokenizer import Encoding, WordPieceTokenizer

logger = logging.getLogger(__name__)

MAX_TOKENS = 256  # of one prompt, [CLS] and [SEP] included

CharacterSpan = tuple[int, int]
Entry = tuple[int, str, tuple[int, ...]]  # a category: its global index, name and token ids


# ---------------------------------------------------------------------------------------------- categories


def build_category_prompts(
    categories: Sequence[str],
    tokenizer: WordPieceTokenizer,
    max_tokens: int = MAX_TOKENS,
    names_per_prompt: int = 0,
    sub_sentence: bool = True,
) -> list[Prompt]:
    """Prompts that name `categories` in order, as few as hold them all within `max_tokens` each, and at most
    `names_per_prompt` of them where that is not 0.

    A name is lower-cased, stripped, and its inner white space becomes single spaces; nothing else is changed
    (underscores, slashes and brackets stay). Repeated names are written, and scored, once each. A name
    that the vocabulary does not know at all is kept with a warning.

    Raises:
        TypeError: `categories` is one string, or holds something that is not a string.
        ValueError: no category; a name without a token other than "." and "?"; a name too long for a prompt; a
            negative `names_per_prompt`.
    """
    if names_per_prompt < 0:
        raise ValueError(f"{names_per_prompt} names a prompt (TEST.CATEGORIES_PER_PROMPT): give a number, or 0 for all")
    encoded = _encode_names(categories, tokenizer, max_tokens, sub_sentence)
    write = _category_prompt if sub_sentence else _joined_prompt
    chunks: list[list[int]] = [[]]
    left = names_budget(max_tokens, sub_sentence)
    for index, ids in enumerate(encoded):
        if len(ids) + 1 > left or 0 < names_per_prompt <= len(chunks[-1]):
            chunks.append([])
            left = names_budget(max_tokens, sub_sentence)
        chunks[-1].append(index)
        left -= len(ids) + 1
    return [write([(i, categories[i], encoded[i]) for i in chunk], tokenizer) for chunk in chunks]


def names_budget(max_tokens: int, sub_sentence: bool = True) -> int:
    """Tokens that a prompt has for names, each counted with a period: all but [CLS] and [SEP].

    Without sub-sentences no period follows the last name, so there is room for one more token.
    """
    return max_tokens - 2 if sub_sentence else max_tokens - 1


def _encode_names(
    categories: Sequence[str], tokenizer: WordPieceTokenizer, max_tokens: int, sub_sentence: bool
) -> list[tuple[int, ...]]:
    """Token ids of each name, checked."""
    if isinstance(categories, str):
        raise TypeError(
            f"categories must be a list of names, not the string {categories!r}; "
            "give [...] of names, or use the text as a caption"
        )
    if len(categories) == 0:
        raise ValueError("the list of categories is empty; name at least one category")
    encoded = []
    for index, name in enumerate(categories):
        if not isinstance(name, str):
            raise TypeError(f"category {index} must be a string, not {type(name).__name__}: {name!r}")
        fault = name_fault(name, tokenizer, max_tokens, sub_sentence)
        if fault:
            raise ValueError(f"category {index} ({_shortened(name)!r}) {fault}")
        ids = encode_name(name, tokenizer)
        if set(ids) == {tokenizer.unknown_id}:
            _warn_unknown("category", _shortened(name))
        encoded.append(ids)
    return encoded


def name_fault(
    name: str, tokenizer: WordPieceTokenizer, max_tokens: int = MAX_TOKENS, sub_sentence: bool = True
) -> str:
    """Why `name` cannot stand in a prompt, as what follows it in a sentence; "" where it can."""
    ids = encode_name(name, tokenizer)
    if set(ids) <= tokenizer.delimiter_ids:
        return "contains no word; give it a name or leave it out"
    most = names_budget(max_tokens, sub_sentence) - 1
    if len(ids) > most:
        return (
            f"has {len(ids)} tokens, but a prompt of {max_tokens} tokens holds a name of at most {most}; "
            "shorten the name, or use it as a caption"
        )
    return ""


@functools.lru_cache(maxsize=1 << 16)
def encode_name(name: str, tokenizer: WordPieceTokenizer) -> tuple[int, ...]:
    """Token ids of a name as prompts write it, without its closing period, [CLS] and [SEP]."""
    return tokenizer.encode(normalised_name(name)).ids[1:-1]


@functools.lru_cache(maxsize=1024)
def _warn_unknown(kind: str, text: str) -> None:
    """Once per text: training builds the same prompts again and again."""
    logger.warning(
        "the vocabulary has no part of the %s %r: the model sees only [UNK] and cannot tell it from other unknown "
        "text; write it in words that the vocabulary knows",
        kind,
        text,
    )


def _category_prompt(entries: Sequence[Entry], tokenizer: WordPieceTokenizer) -> Prompt:
    """One prompt of sub-sentences: a name and its closing period form a segment."""
    input_ids = [tokenizer.start_id]
    position_ids = [0]
    ranges: list[TokenRange] = [(0, 1)]
    spans: list[tuple[TokenRange, ...]] = []
    for _, _, ids in entries:
        start, end = len(input_ids), len(input_ids) + len(ids)
        input_ids += [*ids, tokenizer.period_id]
        position_ids += range(end + 1 - start)
        ranges += [(start, end + 1)] * (end + 1 - start)
        spans.append(((start, end),))
    ranges.append((len(input_ids), len(input_ids) + 1))
    return Prompt(
        caption=" ".join(f"{normalised_name(name)} ." for _, name, _ in entries),
        input_ids=(*input_ids, tokenizer.end_id),
        position_ids=(*position_ids, 0),
        attention_ranges=tuple(ranges),
        token_spans=tuple(spans),
        category_indices=tuple(index for index, _, _ in entries),
        names=tuple(name for _, name, _ in entries),
    )


def _joined_prompt(entries: Sequence[Entry], tokenizer: WordPieceTokenizer) -> Prompt:
    """One prompt of names with periods between them, all in one segment (GLIP)."""
    prompt = _category_prompt(entries, tokenizer)
    ids = (*prompt.input_ids[:-2], tokenizer.end_id)
    segments = one_segment(len(ids))
    return dataclasses.replace(
        prompt,
        caption=". ".join(normalised_name(name) for _, name, _ in entries),
        input_ids=ids,
        position_ids=segments.position_ids,
        attention_ranges=segments.attention_ranges,
    )


# ------------------------------------------------------------------------------------------------- captions


def preprocess_caption(caption: str, sub_sentence: bool = True) -> str:
    """Lower-case, strip, and close with a period, as the authors do before the model sees a caption.

    Without sub-sentences (GLIP) no period is added, and none taken away.
    """
    text = caption.lower().strip()
    return text if text.endswith(".") or not sub_sentence else text + "."


def build_caption_prompt(
    caption: str,
    tokenizer: WordPieceTokenizer,
    max_tokens: int = MAX_TOKENS,
    phrases: Sequence[CharacterSpan | Sequence[CharacterSpan]] | None = None,
    sub_sentence: bool = True,
) -> Prompt:
    """The prompt of a free text, which with sub-sentences always ends in a period, alone and in a batch.

    Args:
        phrases: character ranges of `caption` as given, half-open, one or several for each phrase; they become
            `token_spans`. A phrase that lies beyond the cut of an over-long caption has no tokens.

    Raises:
        TypeError: the caption is not a string.
        ValueError: the caption has no word; a phrase lies outside the caption or covers no token.
    """
    if not isinstance(caption, str):
        raise TypeError(f"a caption must be a string, not {type(caption).__name__}: {caption!r}")
    if not any(_is_word_character(character) for character in caption):
        raise ValueError(f"the caption {_shortened(caption)!r} contains no word; say what to look for")
    ranges = [_character_ranges(phrase, index, caption) for index, phrase in enumerate(phrases or ())]
    mapped = [[_in_preprocessed(caption, *span) for span in spans] for spans in ranges]
    names = tuple(" ".join(caption[start:end] for start, end in spans) for spans in ranges)
    text = preprocess_caption(caption, sub_sentence)
    read = tokenize_caption if sub_sentence else _tokenize_sentence
    prompt = read(text, tokenizer, max_tokens, spans=mapped, names=names)
    if set(prompt.input_ids) - tokenizer.delimiter_ids == {tokenizer.unknown_id}:
        _warn_unknown("caption", _shortened(caption))
    return prompt


def tokenize_caption(
    caption: str,
    tokenizer: WordPieceTokenizer,
    max_tokens: int = MAX_TOKENS,
    num_columns: int | None = None,
    spans: Sequence[Sequence[CharacterSpan]] = (),
    names: tuple[str, ...] = (),
) -> Prompt:
    """The prompt of a text exactly as written: nothing lower-cased beforehand, no period added.

    Segments and positions are computed on the full length, then everything is cut to `max_tokens` (with a
    warning; the final [SEP] is lost), as the authors do.

    Args:
        num_columns: width of the batch in which the authors' code would see this text; see
            :func:`segment_tokens`. Without effect on a caption that ends in a period.
        spans: character ranges of each phrase in `caption`; `names` are their names.
    """
    encoding = _encode_caption(caption, tokenizer, max_tokens)
    segments = segment_tokens(encoding.ids, tokenizer, num_columns)
    return Prompt(
        caption=caption,
        input_ids=encoding.ids[:max_tokens],
        position_ids=segments.position_ids[:max_tokens],
        attention_ranges=tuple((start, min(end, max_tokens)) for start, end in segments.attention_ranges[:max_tokens]),
        token_spans=_token_spans(encoding, spans, max_tokens),
        category_indices=tuple(range(len(spans))),
        names=names,
    )


def _tokenize_sentence(
    caption: str,
    tokenizer: WordPieceTokenizer,
    max_tokens: int,
    spans: Sequence[Sequence[CharacterSpan]],
    names: tuple[str, ...],
) -> Prompt:
    """As :func:`tokenize_caption`, in one segment; cut, with its caption, before [SEP], as BERT's tokenizer does."""
    encoding = _encode_caption(caption, tokenizer, max_tokens)
    length = min(len(encoding), max_tokens)
    segments = one_segment(length)
    return Prompt(
        caption=caption if length == len(encoding) else caption[: encoding.offsets[length - 2][1]],
        input_ids=(*encoding.ids[: length - 1], tokenizer.end_id),
        position_ids=segments.position_ids,
        attention_ranges=segments.attention_ranges,
        token_spans=_token_spans(encoding, spans, length - 1),
        category_indices=tuple(range(len(spans))),
        names=names,
    )


def _encode_caption(caption: str, tokenizer: WordPieceTokenizer, max_tokens: int) -> Encoding:
    """All tokens, with a warning where they are too many."""
    encoding = tokenizer.encode(caption)
    if len(encoding) > max_tokens:
        logger.warning(
            "a caption of %d tokens is cut to %d; split it, or use categories: %r",
            *(len(encoding), max_tokens, _shortened(caption)),
        )
    return encoding


def _is_word_character(character: str) -> bool:
    """Neither white space, control, punctuation nor a bare accent; symbols and emoji count as words."""
    return unicodedata.category(character)[0] not in "ZCPM"


def _character_ranges(phrase: CharacterSpan | Sequence[CharacterSpan], index: int, caption: str) -> list[CharacterSpan]:
    """The checked ranges of one phrase, given as one range or several."""
    ranges = list(phrase) if len(phrase) == 0 or isinstance(phrase[0], (tuple, list)) else [phrase]
    checked: list[CharacterSpan] = []
    for item in ranges:
        start, end = (int(border) for border in cast(CharacterSpan, item))
        if not 0 <= start < end <= len(caption):
            raise ValueError(
                f"phrase {index} names the characters {start} to {end}, which is no part of the caption of "
                f"{len(caption)} characters {_shortened(caption)!r}"
            )
        checked.append((start, end))
    if not checked:
        raise ValueError(f"phrase {index} of the caption {_shortened(caption)!r} has no character range")
    return checked


def _in_preprocessed(caption: str, start: int, end: int) -> CharacterSpan:
    """A range of the caption as given -> the range in its preprocessed form.

    Lower-casing can lengthen a text ("\u0130"), and stripping moves it.
    """
    lengths = [len(character.lower()) for character in caption]
    shift = len(caption.lower()) - len(caption.lower().lstrip())
    return sum(lengths[:start]) - shift, sum(lengths[:end]) - shift


def _token_spans(
    encoding: Encoding, spans: Sequence[Sequence[CharacterSpan]], num_kept: int
) -> tuple[tuple[TokenRange, ...], ...]:
    """For each phrase the runs of tokens that overlap its characters, of the first `num_kept` tokens."""
    return tuple(_token_ranges(encoding.offsets, phrase, index, num_kept) for index, phrase in enumerate(spans))


def _token_ranges(
    offsets: Sequence[CharacterSpan], phrase: Sequence[CharacterSpan], index: int, num_kept: int
) -> tuple[TokenRange, ...]:
    columns = [
        column
        for column, (begin, stop) in enumerate(offsets)
        if any(max(begin, start) < min(stop, end) for start, end in phrase)
    ]
    if not columns:
        raise ValueError(f"phrase {index} (characters {list(phrase)}) covers no token of the caption; mark its words")
    kept = [column for column in columns if column < num_kept]
    if len(kept) < len(columns):
        logger.warning("phrase %d keeps %d of its %d tokens: the rest is cut off", index, len(kept), len(columns))
    runs = itertools.groupby(enumerate(kept), key=lambda item: item[1] - item[0])
    groups = [[column for _, column in run] for _, run in runs]
    return tuple((group[0], group[-1] + 1) for group in groups)


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
