"""Prompts as tensors."""

from __future__ import annotations

from collections.abc import Sequence

from grounding_dino.structures import Prompt, TextFeatures, TokenizedText
from grounding_dino.text.prompt_arrays import stack_prompts

import torch
import torch.nn.functional as F
from torch import Tensor


def collate_prompts(prompts: Sequence[Prompt]) -> TokenizedText:
    """Prompts as one padded batch on the CPU, see :func:`stack_prompts`."""
    arrays = stack_prompts(prompts)
    return TokenizedText(
        input_ids=torch.from_numpy(arrays.input_ids),
        padding_mask=torch.from_numpy(arrays.padding_mask),
        attention_mask=torch.from_numpy(arrays.attention_mask),
        position_ids=torch.from_numpy(arrays.position_ids),
        has_padding=bool(arrays.padding_mask.any()),
    )


def pad_text(text: TextFeatures, count: int, padding: Tensor | None = None) -> TextFeatures:
    """`text` with `count` more padded tokens, each of which attends to itself alone, as `collate_prompts` has it.

    Args:
        padding: (1, 1, C) features of a padded token; default 0.
    """
    if count == 0:
        return text
    size, length = text.padding_mask.shape
    attention_mask = F.pad(text.attention_mask, (0, count, 0, count))
    attention_mask[:, length:, length:] = torch.eye(count, dtype=torch.bool, device=attention_mask.device)
    if padding is None:
        embeddings = F.pad(text.embeddings, (0, 0, 0, count))
    else:
        embeddings = torch.cat([text.embeddings, padding.expand(size, count, -1)], dim=1)
    return TextFeatures(
        embeddings=embeddings,
        padding_mask=F.pad(text.padding_mask, (0, count), value=True),
        attention_mask=attention_mask,
        position_ids=F.pad(text.position_ids, (0, count)),
        has_padding=True,
    )


def positive_map(prompt: Prompt, num_tokens: int) -> Tensor:
    """(number of categories or phrases, num_tokens) float: 1 on the tokens of each, else 0.

    Raises:
        ValueError: `num_tokens` is smaller than the prompt.
    """
    if num_tokens < len(prompt):
        raise ValueError(f"a map of {num_tokens} columns is too narrow for a prompt of {len(prompt)} tokens")
    rows = torch.zeros(len(prompt.token_spans), num_tokens)
    for row, spans in zip(rows, prompt.token_spans, strict=True):
        for start, end in spans:
            row[start:end] = 1
    return rows
