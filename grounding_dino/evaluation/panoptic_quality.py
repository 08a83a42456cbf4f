"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4) of maps of segments.

A found and a true segment of one category match where their IoU is above 0.5; as segments do not overlap, no segment
has two matches. Of a category, with the matches TP, the unmatched found FP and the unmatched true segments FN,

    PQ = sum of the IoUs of TP / (|TP| + |FP| / 2 + |FN| / 2) = SQ * RQ,

SQ being the mean IoU of TP. Pixels without truth (void) count neither for nor against: they are left out of unions, and
an unmatched found segment that lies in them for more than half is no FP. The same holds for crowd regions and found
segments of their category; a crowd region is never matched nor missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_IOU = 0.5  # of a match, exclusive
MAX_UNJUDGED = 0.5  # share of a found segment in void and crowds above which it is no false positive
MEASURES = ("PQ", "SQ", "RQ")


@dataclass(frozen=True)
class Segments:
    """A picture's map of segments with what is known of each.

    Attributes:
        ids: (H, W) int64, the segment of each pixel; what `numbers` lacks is void.
        numbers: (S,) int64, the segments' ids in the map.
        categories: (S,) int64, their categories, from 0 to K - 1.
        crowd: (S,) bool, whether they stand for a group of things.
    """

    ids: NDArray[np.int64]
    numbers: NDArray[np.int64]
    categories: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    @classmethod
    def of(
        cls, ids: NDArray[np.int64], numbers: Sequence[int], categories: Sequence[int], crowd: Sequence[bool] = ()
    ) -> Segments:
        """From lists; without `crowd` no segment is one."""
        flags = np.array(crowd or [False] * len(numbers), dtype=bool)
        return cls(ids, np.array(numbers, dtype=np.int64), np.array(categories, dtype=np.int64), flags)

    def places(self) -> NDArray[np.int64]:
        """(H * W,): 0 in void, i + 1 on the i-th segment."""
        order = np.argsort(self.numbers)
        pixels = self.ids.reshape(-1)
        if not len(order):
            return np.zeros(pixels.shape, dtype=np.int64)
        ranks = np.searchsorted(self.numbers[order], pixels).clip(max=len(order) - 1)
        return np.where(self.numbers[order][ranks] == pixels, order[ranks] + 1, 0)


@dataclass
class PanopticCounts:
    """What panoptic quality is made of, by category: sums over pictures, to be added up over processes.

    Attributes:
        iou: (K,) float64, the sum of the IoUs of matches.
        matched, extra, missed: (K,) int64, TP, FP and FN.
    """

    iou: NDArray[np.float64]
    matched: NDArray[np.int64]
    extra: NDArray[np.int64]
    missed: NDArray[np.int64]

    @classmethod
    def zeros(cls, num_categories: int) -> PanopticCounts:
        """Of no picture."""
        return cls(np.zeros(num_categories), *(np.zeros(num_categories, dtype=np.int64) for _ in range(3)))

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        return PanopticCounts(
            self.iou + other.iou,
            self.matched + other.matched,
            self.extra + other.extra,
            self.missed + other.missed,
        )

    def per_category(self) -> dict[str, NDArray[np.float64]]:
        """PQ, SQ and RQ (K,) in [0, 1]; NaN where a category is neither in the truth nor found."""
        weight = self.matched + 0.5 * self.extra + 0.5 * self.missed
        present = weight > 0
        pq, rq = (_ratio(part, weight, present) for part in (self.iou, self.matched))
        sq = _ratio(self.iou, np.maximum(self.matched, 1), present)  # 0 without a match, as in the published code
        return {"PQ": pq, "SQ": sq, "RQ": rq}

    def means(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        """PQ, SQ and RQ in percent, means over those of the `chosen` (K,) categories that occur; NaN if none does."""
        return {name: _mean(values[chosen]) for name, values in self.per_category().items()}


def _ratio(part: NDArray, whole: NDArray, defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=defined)


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[~np.isnan(values)]
    return float(100.0 * measured.mean()) if len(measured) else float("nan")


def count_segments(truth: Segments, found: Segments, num_categories: int) -> PanopticCounts:
    """The counts of one picture; maps of one size, ids checked by the caller."""
    # (1 + true, 1 + found) pixels; row 0 is void, column 0 is where nothing was found
    rows, columns = len(truth.numbers) + 1, len(found.numbers) + 1
    pairs = truth.places() * columns + found.places()
    overlap = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    inside, void = overlap[1:, 1:], overlap[0, 1:]
    found_area = overlap.sum(axis=0)[1:]
    union = overlap.sum(axis=1)[1:, None] + found_area[None] - inside - void[None]
    same = truth.categories[:, None] == found.categories[None]
    iou = inside / np.maximum(union, 1)
    match = same & ~truth.crowd[:, None] & (iou > MIN_IOU)
    of_crowds = (inside * (same & truth.crowd[:, None])).sum(axis=0)
    unjudged = (void + of_crowds) / np.maximum(found_area, 1) > MAX_UNJUDGED
    true_index, found_index = np.nonzero(match)
    missed = ~match.any(axis=1) & ~truth.crowd
    extra = ~match.any(axis=0) & ~unjudged

    matched_categories = truth.categories[true_index]
    matched_iou = iou[true_index, found_index]
    return PanopticCounts(
        np.bincount(matched_categories, weights=matched_iou, minlength=num_categories).astype(np.float64),
        np.bincount(matched_categories, minlength=num_categories),
        np.bincount(found.categories[extra], minlength=num_categories),
        np.bincount(truth.categories[missed], minlength=num_categories),
    )


def panoptic_metrics(counts: PanopticCounts, is_thing: NDArray[np.bool_], names: Sequence[str]) -> dict[str, float]:
    """Detectron2's names, in percent: PQ, SQ, RQ, with _th of things and _st of stuff, and "PQ-name" of each category.

    Args:
        counts: of all pictures.
        is_thing: (K,).
        names: of the K categories.
    """
    metrics: dict[str, float] = {}
    for suffix, chosen in (("", np.ones_like(is_thing)), ("_th", is_thing), ("_st", ~is_thing)):
        metrics.update({f"{name}{suffix}": value for name, value in counts.means(chosen).items()})
    each = counts.per_category()
    for measure in MEASURES:
        metrics.update({f"{measure}-{name}": float(100.0 * value) for name, value in zip(names, each[measure])})
    return metrics
