"""From logits over a prompt's tokens to scores of its categories."""

from __future__ import annotations

import functools

from grounding_dino.structures import Prompt
from grounding_dino.text.phrases import check_columns
from grounding_dino.text.prompt_arrays import token_shares

import torch
from torch import Tensor

TOKEN_SCORES = ("mean", "max")  # how a category's score follows from those of its tokens


def category_scores(pred_logits: Tensor, prompt: Prompt, token_score: str = "mean") -> Tensor:
    """Mean sigmoid over each category's tokens: (..., T) logits -> (..., number of categories) float32.

    With `token_score` "max" it is that of the best token; of all tokens where the prompt names one thing, as published
    evaluations of referring expressions have it: MDETR's annotations mark only the head noun of an expression.

    Categories with the same tokens get exactly the same score (that of the first), so the first one wins
    wherever the first of equals is taken.
    """
    check_columns(pred_logits, prompt)
    if token_score not in TOKEN_SCORES:
        raise ValueError(f"unknown token_score {token_score!r}; choose from {TOKEN_SCORES}")
    scores = pred_logits[..., : len(prompt)].float().sigmoid()
    if token_score == "max":
        return _best_token_scores(scores, prompt)
    rows, source = _token_weights(prompt, scores.device)
    with torch.autocast(scores.device.type, enabled=False):  # which would round the scores, and tie them
        means = scores @ rows.T
    return means if source is None else means[..., source]


@functools.lru_cache(maxsize=256)
def _token_weights(prompt: Prompt, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """:func:`token_shares` where the logits are.

    Kept, since a prompt is mostly that of the picture before; there a GPU would wait for the copy.
    """
    rows, source = token_shares(prompt)
    with torch.inference_mode(False):  # or they could be used in that mode alone
        return torch.tensor(rows, device=device), None if source is None else torch.tensor(source, device=device)


def _best_token_scores(scores: Tensor, prompt: Prompt) -> Tensor:
    """(..., T) scores of tokens -> (..., number of categories); 0 for a category that was cut off."""
    if len(prompt.token_spans) == 1:
        return scores.amax(-1, keepdim=True)
    best = [
        torch.cat([scores[..., start:end] for start, end in spans], -1).amax(-1) if spans else scores[..., 0] * 0
        for spans in prompt.token_spans
    ]
    return torch.stack(best, -1)
