"""From scores over a prompt's tokens to phrases, by the rules of the authors' `predict`.

Logits and masks may be tensors or numpy arrays; torch is not imported.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grounding_dino.structures import Prompt
from grounding_dino.text.tokenizer import WordPieceTokenizer

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LAST_COLUMN = 255  # the authors' default right border: this column and those after it never enter a phrase


def decode_phrases(
    pred_logits: Tensor | NDArray[Any],
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
    check_columns(pred_logits, prompt)
    scores = _probabilities(pred_logits[..., : len(prompt)])  # (Q, T)
    keep = scores > text_threshold
    if not remove_combined:
        return [_phrase(mask, prompt.input_ids, tokenizer) for mask in keep]
    separator_ids = (tokenizer.start_id, tokenizer.end_id, tokenizer.period_id)
    separators = [column for column, token in enumerate(prompt.input_ids) if token in separator_ids]
    borders = [_enclosing(separators, best, len(prompt)) for best in scores.argmax(-1).tolist()]
    return [_phrase(mask, prompt.input_ids, tokenizer, *border) for mask, border in zip(keep, borders, strict=True)]


def best_words(pred_logits: Tensor | NDArray[Any], prompt: Prompt, tokenizer: WordPieceTokenizer) -> list[str]:
    """The word of the caption that each query fits best, whatever its score: a label where no token passes a threshold.

    Args:
        pred_logits: (Q, T) logits over the tokens, T >= len(prompt); columns beyond the prompt are ignored.

    Returns:
        Q words of `prompt.caption`, letters and digits up to the next other character.

    Raises:
        ValueError: the prompt has nothing but delimiters.
    """
    check_columns(pred_logits, prompt)
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


def name_phrases(
    pred_logits: Tensor | NDArray[Any], prompt: Prompt, tokenizer: WordPieceTokenizer, text_threshold: float
) -> list[str]:
    """As :func:`decode_phrases`, and the best word where no token passes: no phrase is empty."""
    phrases = decode_phrases(pred_logits, prompt, tokenizer, text_threshold)
    words = best_words(pred_logits, prompt, tokenizer)
    return [phrase.strip() or word for phrase, word in zip(phrases, words)]


def decode_token_mask(
    mask: Tensor | NDArray[np.bool_],
    input_ids: Sequence[int],
    tokenizer: WordPieceTokenizer,
    left: int = 0,
    right: int = LAST_COLUMN,
) -> str:
    """The text of the tokens that `mask` (T,) selects strictly between the columns `left` and `right`.

    Raises:
        IndexError: a selected column lies beyond the caption.
    """
    columns = [column for column in np.flatnonzero(np.asarray(mask)).tolist() if left < column < right]
    if columns and columns[-1] >= len(input_ids):
        raise IndexError(f"token {columns[-1]} is selected, but the caption has only {len(input_ids)} tokens")
    return tokenizer.decode([input_ids[column] for column in columns])


def phrases_to_categories(phrases: Sequence[str], categories: Sequence[str]) -> list[int | None]:
    """For each phrase the index of the first category that is a substring of it, else None.

    Kept for scripts written for the authors' `Model.predict_with_classes`; a category prompt needs no search.
    """
    return [next((i for i, name in enumerate(categories) if name in phrase), None) for phrase in phrases]


def _phrase(
    mask: NDArray[np.bool_],
    input_ids: Sequence[int],
    tokenizer: WordPieceTokenizer,
    left: int = 0,
    right: int = LAST_COLUMN,
) -> str:
    return decode_token_mask(mask, input_ids, tokenizer, left, right).replace(".", "")


def _enclosing(separators: list[int], best: int, end: int) -> tuple[int, int]:
    """Columns of the separators around column `best`; a separator belongs to the phrase that it closes."""
    after = bisect.bisect_left(separators, best)
    left = separators[after - 1] if after else best  # nothing lies between [CLS] and itself
    return left, separators[after] if after < len(separators) else end


def _probabilities(logits: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    if isinstance(logits, np.ndarray):
        return sigmoid(logits)
    found: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
    return found


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float32]:
    """In float32; 0 at -inf."""
    with np.errstate(over="ignore"):  # exp(large) is inf, whose inverse is the 0 that is meant
        odds = np.exp(-logits.astype(np.float32, copy=False))
    return np.reciprocal(1 + odds)


def check_columns(pred_logits: Tensor | NDArray[Any], prompt: Prompt) -> None:
    """Refuse logits over fewer tokens than the prompt has, with ValueError."""
    if pred_logits.shape[-1] < len(prompt):
        raise ValueError(
            f"logits over {pred_logits.shape[-1]} tokens do not belong to a prompt of {len(prompt)} tokens: "
            f"{prompt.caption[:80]!r}"
        )
