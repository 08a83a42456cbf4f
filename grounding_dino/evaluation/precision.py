"""Precision over recall, as COCO and LVIS measure it: what their averages are means of, and curves are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# As pycocotools and the lvis package write them: arange would be off in the last digits.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Areas in pixels, both ends included, in the order of the last axis of `PrecisionTable.values`.
AREA_RANGES: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class PrecisionTable:
    """Interpolated precision, in [0, 1], at IOU_THRESHOLDS and RECALLS.

    Attributes:
        values: (IoUs, recalls, categories, areas of AREA_RANGES) float64; -1 where a category has no object.
        names: of the categories.
    """

    values: NDArray[np.float64]
    names: Sequence[str]

    def average(self, iou: float | None = None, area: str = "all", categories: Sequence[int] | None = None) -> float:
        """Mean precision in percent over recalls, IoUs (or one) and categories (or some); NaN without any object."""
        found = self.values[..., list(AREA_RANGES).index(area)]
        if iou is not None:
            found = found[np.isclose(IOU_THRESHOLDS, iou)]
        if categories is not None:
            found = found[:, :, list(categories)]
        found = found[found > -1]
        return float(found.mean()) * 100 if found.size else float("nan")

    def metrics(self) -> dict[str, float]:
        """AP, AP50, AP75 and AP of small, medium and large objects, in percent."""
        of_ious = [self.average(iou=iou) for iou in (None, 0.5, 0.75)]
        return dict(zip(METRICS, [*of_ious, *(self.average(area=area) for area in ("small", "medium", "large"))]))

    def per_category(self) -> list[float]:
        """AP of each category in percent, NaN where it has no object."""
        return [self.average(categories=[index]) for index in range(len(self.names))]

    def curve(self, iou: float | None = None) -> NDArray[np.float64]:
        """Precision at each of RECALLS, the mean over the categories that have objects, and IoUs (or one); NaN if none.

        Its mean is the AP (of that IoU), in [0, 1].
        """
        found = self.values[..., 0]  # all areas
        if iou is not None:
            found = found[np.isclose(IOU_THRESHOLDS, iou)]
        measured = found[:, :, (found > -1).all(axis=(0, 1))]
        return measured.mean(axis=(0, 2)) if measured.size else np.full(len(RECALLS), np.nan)


def interpolate(hits: NDArray[np.bool_], alarms: NDArray[np.bool_], num_objects: int) -> NDArray[np.float64]:
    """Precision at each of RECALLS: the best that is reached at that recall or a higher one, 0 beyond the last.

    Args:
        hits, alarms: (N,) right and wrong detections, best-scored first; what is neither does not count.
        num_objects: how many there are to find, at least 1.
    """
    right, wrong = np.cumsum(hits, dtype=np.float64), np.cumsum(alarms, dtype=np.float64)
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(right / num_objects, RECALLS, side="left")]
