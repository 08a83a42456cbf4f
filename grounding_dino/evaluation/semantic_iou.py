"""Measures of semantic maps: IoU and accuracy of pixels (Long et al. 2015), and Boundary IoU (Cheng et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY_RATIO = 0.02  # of a picture's diagonal: the width of boundaries in Boundary IoU

Counts = NDArray[np.int64]


def confusion(truth: NDArray[np.int64], found: NDArray[np.int64], num_classes: int) -> Counts:
    """Pixels (K + 1, K) by true class (the last row: ignored) and found class, of maps (H, W)."""
    pairs = truth.reshape(-1) * num_classes + found.reshape(-1)
    return np.bincount(pairs, minlength=(num_classes + 1) * num_classes).reshape(num_classes + 1, num_classes)


def boundary_counts(truth: NDArray[np.int64], found: NDArray[np.int64], num_classes: int) -> Counts:
    """(2, K): pixels that a class's true and found boundary regions share, and that either has.

    A boundary region is what of a class lies within 0.02 of the picture's diagonal from its border, which the picture's
    edge is too. Where the truth is ignored (`num_classes`), nothing counts and the found map is ignored alike.
    """
    found = np.where(truth == num_classes, num_classes, found)
    counts = np.zeros((2, num_classes), dtype=np.int64)
    present = sum(np.bincount(labels.reshape(-1), minlength=num_classes)[:num_classes] for labels in (truth, found))
    for index in np.flatnonzero(present):
        true_part, found_part = boundary(truth == index), boundary(found == index)
        counts[:, index] = (true_part & found_part).sum(), (true_part | found_part).sum()
    return counts


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) within a distance (in rows and columns) of 0.02 of the diagonal from its border."""
    distance = max(1, round(BOUNDARY_RATIO * math.hypot(*mask.shape)))
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    padded = np.pad(mask.astype(np.uint8), 1)
    return mask & ~cv2.erode(padded, kernel)[1:-1, 1:-1].astype(bool)


def semantic_metrics(counts: Counts, boundaries: Counts, names: Sequence[str]) -> dict[str, float]:
    """Detectron2's metrics and names, in percent: mIoU, fwIoU, mACC, pACC and, of each class, IoU, ACC and boundary's.

    Means are over the classes that the truth has; fwIoU weighs them by their pixels. NaN where there is nothing to
    measure.

    Args:
        counts: (K + 1, K), as :func:`confusion` gives them, of all pictures.
        boundaries: (2, K), as :func:`boundary_counts`.
        names: of the K classes.
    """
    judged = counts[:-1].astype(np.float64)
    right, true, found = judged.diagonal(), judged.sum(axis=1), judged.sum(axis=0)
    iou, accuracy = _ratio(right, true + found - right), _ratio(right, true)
    boundary_iou = _ratio(boundaries[0].astype(np.float64), boundaries[1].astype(np.float64))
    present = true > 0
    smaller = np.minimum(iou, boundary_iou)
    metrics = {
        "mIoU": _mean(iou[present]),
        "fwIoU": _total(iou[present] * true[present], true),
        "mACC": _mean(accuracy[present]),
        "pACC": _total(right, true),
        "mBoundaryIoU": _mean(boundary_iou[present]),
    }
    each = {"IoU": iou, "ACC": accuracy, "BoundaryIoU": boundary_iou, "min(IoU, B-Iou)": smaller}
    for measure, values in each.items():
        shown = np.where(present, 100.0 * values, np.nan)
        metrics.update({f"{measure}-{name}": float(value) for name, value in zip(names, shown)})
    return metrics


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    return float(100.0 * values.mean()) if len(values) else float("nan")


def _total(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    return float(100.0 * part.sum() / whole.sum()) if whole.sum() > 0 else float("nan")
