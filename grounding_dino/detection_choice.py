"""Which of a model's (query, category) pairs become detections: thresholds, and names that are not wanted; in numpy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.thresholds import BOX_THRESHOLD, Threshold, thresholds_of

import numpy as np
from numpy.typing import NDArray

# Two boxes with at least this IoU show one object: queries of one object mostly agree better than that; two objects, or
# an object and its part, seldom do.
SAME_OBJECT_IOU = 0.7


@dataclass(frozen=True)
class DetectionChoice:
    """The rule of a predictor's call.

    Scores compete as they are; thresholds are applied to the winners. So a query's category is the best of all its
    categories, and lowering a threshold never changes another category's detections. With names that are not wanted:

    - of one query, no category is kept that scores below one that is not wanted: a query whose best category is not
      wanted gives nothing;
    - a query whose best category is not wanted also drops what other queries found with a lower score in boxes that
      overlap its own by :data:`SAME_OBJECT_IOU`: this decides between names of different prompts, which share no query.

    A name that is not wanted needs to pass no threshold. Of equal scores the wanted one stays.

    Attributes:
        box_threshold: what scores have to exceed.
        best_label_only: at most one category a query.
    """

    box_threshold: Threshold = BOX_THRESHOLD
    best_label_only: bool = True

    def least(self, names: Sequence[str]) -> float:
        """A score that all detections exceed: pairs below it have no part in the choice."""
        return min(thresholds_of(self.box_threshold, names), default=0.0)

    def rows(
        self,
        scores: NDArray[np.floating[Any]],
        classes: NDArray[np.integer[Any]],
        queries: NDArray[np.integer[Any]],
        boxes: NDArray[np.floating[Any]],
        names: Sequence[str],
        not_wanted: Collection[int] = (),
    ) -> NDArray[np.int64]:
        """The rows of the pairs that become detections, in their order.

        Args:
            scores, classes, queries, boxes: of the pairs: (N,), (N,) indices into `names`, (N,) and (N, 4) XYXY.
            not_wanted: indices of names.
        """
        chosen = np.ones(len(scores), dtype=bool)
        if not_wanted:
            unwanted = np.isin(classes, list(not_wanted))
            chosen = ~unwanted & ~_beaten(scores, queries, boxes, unwanted)
        if self.best_label_only:
            chosen &= _first_of_each(queries, chosen)
        least = np.asarray(thresholds_of(self.box_threshold, names), dtype=scores.dtype)
        chosen &= scores > least[classes]
        return np.flatnonzero(chosen)


def _first_of_each(queries: NDArray[np.integer[Any]], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows are the first of their query; pairs come best first."""
    rows = np.flatnonzero(among)
    first = np.zeros(len(queries), dtype=bool)
    first[rows[np.unique(queries[rows], return_index=True)[1]]] = True
    return first


def _beaten(
    scores: NDArray[np.floating[Any]],
    queries: NDArray[np.integer[Any]],
    boxes: NDArray[np.floating[Any]],
    unwanted: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which pairs lose to a name that is not wanted, in their own query or in another's box."""
    _, query = np.unique(queries, return_inverse=True)
    best_wanted, best_unwanted = (np.full(len(scores), -np.inf, scores.dtype) for _ in range(2))
    np.maximum.at(best_wanted, query[~unwanted], scores[~unwanted])
    np.maximum.at(best_unwanted, query[unwanted], scores[unwanted])
    beaten: NDArray[np.bool_] = scores < best_unwanted[query]
    winners = unwanted & (best_unwanted > best_wanted)[query] & (scores == best_unwanted[query])
    overlap = pairwise_iou(boxes, boxes[winners]) >= SAME_OBJECT_IOU  # (N, winners)
    beaten |= (overlap & (scores[:, None] < scores[winners])).any(axis=1)
    return beaten


def pairwise_iou(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N, M) from boxes (N, 4) and (M, 4) XYXY; 0 of two boxes without area."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (N, M, 2)
    shared = sides.clip(min=0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
