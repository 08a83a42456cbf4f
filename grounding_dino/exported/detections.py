"""From a model's answer for one prompt to detections, in numpy: what `modeling/postprocess.py` does in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.exported.description import ClassDescription
from grounding_dino.structures import InstanceList, Prompt
from grounding_dino.text.phrases import check_columns, sigmoid
from grounding_dino.text.prompt_arrays import token_shares

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Size = tuple[int, int]  # (h, w) in pixels


@dataclass(frozen=True)
class Detections:
    """What was found in one picture: numpy arrays under the names that `Instances` has, N detections in each.

    Indexed by a slice, a mask (N,) or indices, it gives some of them.

    Attributes:
        image_size: (height, width) of the picture, in whose pixels boxes and masks are.
        pred_boxes: (N, 4) float32, XYXY.
        scores: (N,) float32.
        pred_classes: (N,) int64, index into the categories or classes; None of a caption.
        labels: the names of `pred_classes`.
        phrases: what of a caption names each; None with categories and classes.
        pred_masks: (N, height, width) bool; None of a model without masks.
        query_indices, token_logits, mask_logits: on the way to a result, else None: (N,) which detections are of one
            query, (N, T), and (N, h, w).
    """

    image_size: Size
    pred_boxes: Array
    scores: Array
    pred_classes: Array | None = None
    labels: InstanceList[str] | None = None
    phrases: InstanceList[str] | None = None
    pred_masks: Array | None = None
    query_indices: Array | None = dataclasses.field(default=None, repr=False)
    token_logits: Array | None = dataclasses.field(default=None, repr=False)
    mask_logits: Array | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Any) -> Detections:
        parts = {name: part[chosen] for name, part in self.get_fields().items()}
        return dataclasses.replace(self, **parts)

    def of_later_queries(self, first: int) -> Detections:
        """The same, with queries counted from `first`."""
        assert self.query_indices is not None
        return dataclasses.replace(self, query_indices=self.query_indices + first)

    def get_fields(self) -> dict[str, Any]:
        """What is there of each detection, by name, as of `Instances`."""
        names = (field.name for field in dataclasses.fields(self) if field.name != "image_size")
        return {name: part for name in names if (part := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Answer:
    """A model's answer for one picture and prompt, without a batch axis."""

    pred_logits: Array  # (Q, T tokens or K columns)
    pred_boxes: Array  # (Q, 4) cxcywh in [0, 1] of the picture, or of its frame where padding counts
    pred_masks: Array | None = None  # (Q, h, w) logits
    pred_quality: Array | None = None  # (Q,) logits: centerness of a dense detector's places

    def of_real_queries(self) -> Answer:
        """Without the surplus of queries, all logits -inf, that a small picture has no image tokens for."""
        real = self.pred_logits.max(-1) != -np.inf
        if real.all():
            return self
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept: dict[str, Any] = {name: None if part is None else part[real] for name, part in parts.items()}
        return Answer(**kept)

    def check_finite(self) -> None:
        """See that there are no NaN, which would pass no threshold and end as a picture without objects.

        Raises:
            FloatingPointError: there are some, or infinite boxes.
        """
        parts = (self.pred_logits.max(-1), self.pred_masks, self.pred_quality)
        finite = np.isfinite(self.pred_boxes).all() and not any(
            part is not None and np.isnan(part).any() for part in parts
        )
        if not finite:
            raise FloatingPointError("the model answers with NaN or infinite values")


def category_scores(logits: Array, asked: Prompt | ClassDescription) -> Array:
    """(Q, T or K) logits -> (Q, categories of this prompt, or classes) float32."""
    if isinstance(asked, ClassDescription):
        columns = list(asked.columns)
        return (_softmax(logits) if asked.exclusive else sigmoid(logits))[:, columns]
    check_columns(logits, asked)
    shares, source = token_shares(asked)
    means = sigmoid(logits[:, : len(asked)]) @ shares.T
    return means if source is None else means[:, source]


def indices_of(asked: Prompt | ClassDescription) -> Array:
    """What the columns of `category_scores` count among all categories, or classes."""
    indices = range(len(asked.columns)) if isinstance(asked, ClassDescription) else asked.category_indices
    return np.asarray(indices, dtype=np.int64)


def best_pairs(answer: Answer, asked: Prompt | ClassDescription, size: Size, limit: int) -> Detections:
    """The `limit` best (query, category) pairs of one prompt, best first."""
    scores = category_scores(answer.pred_logits, asked)
    order = _falling(scores.ravel())[:limit]
    queries = order // scores.shape[1]
    return Detections(
        image_size=size,
        pred_boxes=scaled_boxes(answer.pred_boxes[queries], size),
        scores=scores.ravel()[order],
        pred_classes=indices_of(asked)[order % scores.shape[1]],
        query_indices=queries,
        mask_logits=None if answer.pred_masks is None else answer.pred_masks[queries],
    )


def caption_queries(answer: Answer, size: Size) -> Detections:
    """Every query with its best token's score, best first, and its `token_logits`, to read phrases from."""
    scores = sigmoid(answer.pred_logits.max(-1))
    order = _falling(scores)
    return Detections(
        image_size=size,
        pred_boxes=scaled_boxes(answer.pred_boxes[order], size),
        scores=scores[order],
        query_indices=order,
        token_logits=answer.pred_logits[order],
        mask_logits=None if answer.pred_masks is None else answer.pred_masks[order],
    )


def joined(parts: Sequence[Detections], limit: int) -> Detections:
    """Detections of several prompts, the `limit` best first; of equal scores those of the earlier prompt."""
    if len(parts) == 1:
        return parts[0][:limit]
    fields: dict[str, Any] = {
        name: np.concatenate([part.get_fields()[name] for part in parts]) for name in parts[0].get_fields()
    }
    return Detections(image_size=parts[0].image_size, **fields)[_falling(fields["scores"])[:limit]]


def scaled_boxes(boxes: Array, size: Size) -> Array:
    """cxcywh in [0, 1] -> XYXY pixels of a picture of `size` (h, w), clipped to it."""
    height, width = size
    centres, halves = boxes[:, :2].astype(np.float32), boxes[:, 2:].astype(np.float32) / 2
    corners = np.concatenate((centres - halves, centres + halves), axis=1)
    scale = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(corners * scale, 0, scale)


def _falling(scores: Array) -> Array:
    """Indices by falling score; of equal ones the first first."""
    return np.argsort(-scores, kind="stable")


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
