"""Which tokens of a prompt see each other, and how their positions count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grounding_dino.text.tokenizer import WordPieceTokenizer

TokenRange = tuple[int, int]


@dataclass(frozen=True)
class Segments:
    """Attention ranges and position ids of each token, and per closing delimiter the tokens before it."""

    attention_ranges: tuple[TokenRange, ...]
    position_ids: tuple[int, ...]
    phrases: tuple[TokenRange | None, ...]  # None: two delimiters in a row


def one_segment(length: int) -> Segments:
    """Every token sees every other, and positions count through, as in BERT's own training."""
    return Segments(((0, length),) * length, tuple(range(length)), ())


def segment_tokens(input_ids: Sequence[int], tokenizer: WordPieceTokenizer, num_columns: int | None = None) -> Segments:
    """Split tokens at [CLS], [SEP], "." and "?": a delimiter closes, and belongs to, the segment before it.

    Attention is full inside a segment, and positions count from 0 in each. A delimiter in the first or the last
    column stands alone and closes nothing, so tokens after the last inner delimiter see only themselves.

    Args:
        num_columns: the number of columns of the batch, if not this text's own. The authors look at the last
            column of the padded batch, so there [SEP] closes an unterminated phrase of every text but the longest.
    """
    last = (num_columns or len(input_ids)) - 1
    ranges = [(column, column + 1) for column in range(len(input_ids))]
    positions = [0] * len(input_ids)
    phrases: list[TokenRange | None] = []
    start = 0
    for column, token in enumerate(input_ids):
        if token not in tokenizer.delimiter_ids:
            continue
        if 0 < column < last:
            length = column + 1 - start
            ranges[start : column + 1] = [(start, column + 1)] * length
            positions[start : column + 1] = range(length)
            phrases.append((start, column) if start < column else None)
        start = column + 1
    return Segments(tuple(ranges), tuple(positions), tuple(phrases))
