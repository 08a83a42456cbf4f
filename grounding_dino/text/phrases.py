"""From scores over a prompt's tokens to categories, and to phrases by the rules of the authors' `predict`."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

from grounding_dino.structures import Prompt
from grounding_dino.text.tokenizer import WordPieceTokenizer

import torch
from torch import Tensor

LAST_COLUMN = 255  # the authors' default right border: this column and those after it never enter a phrase


TOKEN_SCORES = ("mean", "max")  # how a category's score follows from those of its tokens


def category_scores(pred_logits: Tensor, prompt: Prompt, token_score: str = "mean") -> Tensor:
    """Mean sigmoid over each category's tokens: (..., T) logits -> (..., number of categories) float32.

    With `token_score` "max" it is that of the best token; of all tokens where the prompt names one thing, as published
    evaluations of referring expressions have it: MDETR's annotations mark only the head noun of an expression.

    Categories with the same tokens get exactly the same score (that of the first), so the first one wins
    wherever the first of equals is taken.
    """
    _check_columns(pred_logits, prompt)
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
    """The share of each token (T) in each category's score (K, T), and whose score each has; None: its own.

    Kept, since a prompt is mostly that of the picture before; there a GPU would wait for the copy.
    """
    rows = torch.zeros(len(prompt.token_spans), len(prompt))
    first: dict[tuple[int, ...], int] = {}
    source = []
    for row, spans in enumerate(prompt.token_spans):
        columns = [column for start, end in spans for column in range(start, end)]
        source.append(first.setdefault(tuple(prompt.input_ids[column] for column in columns), row))
        if columns:
            rows[row, columns] = 1 / len(columns)
    with torch.inference_mode(False):  # or they could be used in that mode alone
        repeats = len(first) < len(source)
        return rows.to(device, copy=True), torch.tensor(source, device=device) if repeats else None


def _best_token_scores(scores: Tensor, prompt: Prompt) -> Tensor:
    """(..., T) scores of tokens -> (..., number of categories); 0 for a category that was cut off."""
    if len(prompt.token_spans) == 1:
        return scores.amax(-1, keepdim=True)
    best = [
        torch.cat([scores[..., start:end] for start, end in spans], -1).amax(-1) if spans else scores[..., 0] * 0
        for spans in prompt.token_spans
    ]
    return torch.stack(best, -1)


def decode_phrases(
    pred_logits: Tensor,
    prompt: Prompt,
    tokenizer: WordPieceTokenizer,
    text_threshold: float,
    remove_combined: bool = False,
) -> list[str]:
    """The phrase of each query: its tokens whose score exceeds `text_threshold`, decoded, without periods.

    Args:
        pred_logits: (Q, T) logits over the tokens, T >= len(prompt); columns beyond the prompt are ignored.
        remove_combined: keep only tokens between the delimiters ([CLS], [SEP], ".") around the best token, so
            that a phrase never joins words of two.

    Returns:
        Q strings; "" where no token passes.
    """
    _check_columns(pred_logits, prompt)
    scores = pred_logits[..., : len(prompt)].float().sigmoid().cpu()  # (Q, T)
    keep = scores > text_threshold
    if not remove_combined:
        return [_phrase(mask, prompt.input_ids, tokenizer) for mask in keep]
    separator_ids = (tokenizer.start_id, tokenizer.end_id, tokenizer.period_id)
    separators = [column for column, token in enumerate(prompt.input_ids) if token in separator_ids]
    borders = [_enclosing(separators, best, len(prompt)) for best in scores.argmax(-1).tolist()]
    return [_phrase(mask, prompt.input_ids, tokenizer, *border) for mask, border in zip(keep, borders, strict=True)]


def best_words(pred_logits: Tensor, prompt: Prompt, tokenizer: WordPieceTokenizer) -> list[str]:
    """The word of the caption that each query fits best, whatever its score: a label where no token passes a threshold.

    Args:
        pred_logits: (Q, T) logits over the tokens, T >= len(prompt); columns beyond the prompt are ignored.

    Returns:
        Q words of `prompt.caption`, letters and digits up to the next other character.

    Raises:
        ValueError: the prompt has nothing but delimiters.
    """
    _check_columns(pred_logits, prompt)
    caption = prompt.caption
    ranges = tokenizer.encode(caption).offsets[: len(prompt)]
    columns = [i for i, token in enumerate(prompt.input_ids) if token not in tokenizer.delimiter_ids]
    columns = [i for i in columns if any(map(str.isalnum, caption[slice(*ranges[i])]))] or columns
    if not columns:
        raise ValueError(f"the caption {caption[:80]!r} contains no word; say what to look for")
    words = []
    for best in pred_logits[:, columns].argmax(-1).tolist():
        start, end = ranges[columns[best]]
        while start > 0 and caption[start - 1].isalnum() and caption[start].isalnum():
            start -= 1
        while end < len(caption) and caption[end].isalnum() and caption[end - 1].isalnum():
            end += 1
        words.append(caption[start:end])
    return words


def decode_token_mask(
    mask: Tensor, input_ids: Sequence[int], tokenizer: WordPieceTokenizer, left: int = 0, right: int = LAST_COLUMN
) -> str:
    """The text of the tokens that `mask` (T,) selects strictly between the columns `left` and `right`.

    Raises:
        IndexError: a selected column lies beyond the caption.
    """
    columns = [column for column in mask.nonzero().flatten().tolist() if left < column < right]
    if columns and columns[-1] >= len(input_ids):
        raise IndexError(f"token {columns[-1]} is selected, but the caption has only {len(input_ids)} tokens")
    return tokenizer.decode([input_ids[column] for column in columns])


def phrases_to_categories(phrases: Sequence[str], categories: Sequence[str]) -> list[int | None]:
    """For each phrase the index of the first category that is a substring of it, else None.

    Kept for scripts written for the authors' `Model.predict_with_classes`; a category prompt needs no search.
    """
    return [next((i for i, name in enumerate(categories) if name in phrase), None) for phrase in phrases]


def _phrase(
    mask: Tensor, input_ids: Sequence[int], tokenizer: WordPieceTokenizer, left: int = 0, right: int = LAST_COLUMN
) -> str:
    return decode_token_mask(mask, input_ids, tokenizer, left, right).replace(".", "")


def _enclosing(separators: list[int], best: int, end: int) -> tuple[int, int]:
    """Columns of the separators around column `best`; a separator belongs to the phrase that it closes."""
    after = bisect.bisect_left(separators, best)
    left = separators[after - 1] if after else best  # nothing lies between [CLS] and itself
    return left, separators[after] if after < len(separators) else end


def _check_columns(pred_logits: Tensor, prompt: Prompt) -> None:
    if pred_logits.shape[-1] < len(prompt):
        raise ValueError(
            f"logits over {pred_logits.shape[-1]} tokens do not belong to a prompt of {len(prompt)} tokens: "
            f"{prompt.caption[:80]!r}"
        )
