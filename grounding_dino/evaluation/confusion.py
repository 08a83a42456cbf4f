"""Which categories are taken for which: a count of pairs of true and detected category, with a background."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray
from pycocotools.coco import COCO

SCORE_THRESHOLD = 0.35  # the authors' box threshold
IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class Confusion:
    """How often objects of one category were detected as another.

    Attributes:
        counts: (true, detected) -> number; the index `len(names)` is the background: as true for false alarms, as
            detected for missed objects.
        names: of the categories.
        score_threshold: from which score on detections count.
        iou_threshold: from which IoU on a detection is one of an object.
    """

    counts: Mapping[tuple[int, int], int]
    names: Sequence[str]
    score_threshold: float = SCORE_THRESHOLD
    iou_threshold: float = IOU_THRESHOLD

    @property
    def background(self) -> int:
        """The index that stands for no category."""
        return len(self.names)

    def most_confused(self, limit: int) -> list[int]:
        """The categories, in order, if there are at most `limit`; else those that take part in most confusions of one
        category with another, and after them those with most missed objects and false alarms."""
        if len(self.names) <= limit:
            return list(range(len(self.names)))
        between: Counter[int] = Counter()
        with_background: Counter[int] = Counter()
        for (true, found), number in self.counts.items():
            if true != found:
                counter = with_background if self.background in (true, found) else between
                counter.update({true: number, found: number})
        ranked = sorted(range(len(self.names)), key=lambda index: (-between[index], -with_background[index], index))
        return sorted(ranked[:limit])

    def matrix(self, categories: Sequence[int]) -> NDArray[np.int64]:
        """(n + 1, n + 1) counts of some categories and, last, the background; rows are true, columns detected."""
        place = {category: index for index, category in enumerate([*categories, self.background])}
        matrix = np.zeros((len(place), len(place)), dtype=np.int64)
        for (true, found), number in self.counts.items():
            if true in place and found in place:
                matrix[place[true], place[found]] += number
        return matrix

    def as_json(self) -> dict[str, Any]:
        """Thresholds and all pairs by name, most frequent first; null is the background."""
        names = [*self.names, None]
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return {
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "pairs": [{"true": names[t], "detected": names[d], "count": number} for (t, d), number in ordered],
        }


def confusion_of(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
) -> Confusion:
    """The confusion of detections in COCO's results format with boxes."""
    category_ids = sorted(truth.cats)
    index = {number: place for place, number in enumerate(category_ids)}
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        if result["score"] >= score_threshold:
            found[result["image_id"]].append(result)
    counts: Counter[tuple[int, int]] = Counter()
    for image_id in truth.imgs:
        objects, detections = truth.imgToAnns[image_id], found[image_id]
        counts += confusions_of_picture(
            boxes=np.array([item["bbox"] for item in detections], dtype=np.float64).reshape(-1, 4),
            scores=np.array([item["score"] for item in detections], dtype=np.float64),
            classes=[index[item["category_id"]] for item in detections],
            true_boxes=np.array([item["bbox"] for item in objects], dtype=np.float64).reshape(-1, 4),
            true_classes=[index[item["category_id"]] for item in objects],
            crowds=[bool(item.get("iscrowd", 0)) for item in objects],
            background=len(category_ids),
            iou_threshold=iou_threshold,
        )
    names = [str(truth.cats[number]["name"]) for number in category_ids]
    return Confusion(counts, names, score_threshold, iou_threshold)


def confusions_of_picture(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    classes: Sequence[int],
    true_boxes: NDArray[np.float64],
    true_classes: Sequence[int],
    crowds: Sequence[bool],
    background: int,
    iou_threshold: float = IOU_THRESHOLD,
) -> Counter[tuple[int, int]]:
    """Pairs (true, detected) of one picture, boxes (N, 4) XYWH.

    Detections and objects are paired whatever their categories, the pair of largest IoU first, of equal IoUs the
    better-scored detection. What is left is a false alarm or missed; an unpaired detection in a crowd does not count.
    """
    if len(boxes) and len(true_boxes):
        overlaps = mask_util.iou(boxes, true_boxes, [int(crowd) for crowd in crowds])  # of crowds: share of the box
    else:
        overlaps = np.zeros((len(boxes), len(true_boxes)))
    crowd = np.array(crowds, dtype=bool)
    rows, columns = np.nonzero((overlaps >= iou_threshold) & ~crowd)
    counts: Counter[tuple[int, int]] = Counter()
    free_rows, free_columns = set(range(len(boxes))), set(np.flatnonzero(~crowd).tolist())
    for pair in np.lexsort((-scores[rows], -overlaps[rows, columns])):
        row, column = int(rows[pair]), int(columns[pair])
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            counts[true_classes[column], classes[row]] += 1
    for row in free_rows:
        if not (overlaps[row, crowd] >= iou_threshold).any():
            counts[background, classes[row]] += 1
    for column in free_columns:
        counts[true_classes[column], background] += 1
    return counts
