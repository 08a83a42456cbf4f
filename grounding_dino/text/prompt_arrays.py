"""Prompts as numpy arrays: what a model reads of them, and which tokens are a category's. Needs no torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from grounding_dino.structures import Prompt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PromptArrays:
    """A padded batch of prompts, as :class:`TokenizedText` has it."""

    input_ids: NDArray[np.int64]  # (B, T), 0 on padding
    padding_mask: NDArray[np.bool_]  # (B, T), True on padding
    attention_mask: NDArray[np.bool_]  # (B, T, T), True where attention is allowed
    position_ids: NDArray[np.int64]  # (B, T), counted from 0 inside each phrase


def stack_prompts(prompts: Sequence[Prompt]) -> PromptArrays:
    """Prompts as one padded batch. A padded token attends to itself alone and has position 0.

    Raises:
        ValueError: no prompt.
    """
    if not prompts:
        raise ValueError("a batch needs at least one prompt")
    longest = max(len(prompt) for prompt in prompts)
    input_ids = np.zeros((len(prompts), longest), dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    padding_mask = np.ones(input_ids.shape, dtype=np.bool_)
    columns = np.arange(longest)
    starts = np.tile(columns, (len(prompts), 1))  # (B, T)
    ends = starts + 1
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = prompt.input_ids
        position_ids[row, : len(prompt)] = prompt.position_ids
        padding_mask[row, : len(prompt)] = False
        starts[row, : len(prompt)], ends[row, : len(prompt)] = np.asarray(prompt.attention_ranges).T
    attention_mask = (columns >= starts[..., None]) & (columns < ends[..., None])  # (B, T, T)
    return PromptArrays(input_ids, padding_mask, attention_mask, position_ids)


@functools.lru_cache(maxsize=256)
def token_shares(prompt: Prompt) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """The share of each token in each category's score (K, T), and whose score each has (K,); None: its own.

    Categories with the same tokens have the score of the first, so that rounding never tells them apart.
    """
    rows = np.zeros((len(prompt.token_spans), len(prompt)), dtype=np.float32)
    first: dict[tuple[int, ...], int] = {}
    source = []
    for row, spans in enumerate(prompt.token_spans):
        columns = [column for start, end in spans for column in range(start, end)]
        source.append(first.setdefault(tuple(prompt.input_ids[column] for column in columns), row))
        if columns:
            rows[row, columns] = 1 / len(columns)
    return rows, np.asarray(source, dtype=np.int64) if len(first) < len(source) else None
