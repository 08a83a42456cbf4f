"""Average precision on LVIS: federated annotations, standard and fixed AP.

LVIS (Gupta et al., "LVIS: a dataset for large vocabulary instance segmentation", CVPR 2019) says of each picture only
for some categories what is there: those with objects, and those known to be absent. Detections of other categories do
not count. In a category that is not exhaustively annotated in a picture, unmatched detections do not count either.

Fixed AP (Dave et al., "Evaluating large-vocabulary object detectors: the devil is in the details", 2021) has no limit
per picture, so that categories do not compete for places; instead the 10000 best of each category over the data set
count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.evaluation.precision import AREA_RANGES, IOU_THRESHOLDS, RECALLS, PrecisionTable, interpolate

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # of pictures in training: < 10, < 100, the others
STANDARD_DETECTIONS = 300  # of a picture
FIXED_DETECTIONS = 10_000  # of a category
_LOWEST_IOU = float(IOU_THRESHOLDS[0])


# ---------------------------------------------------------------------------------------------- detections


@dataclass(frozen=True)
class Detections:
    """Detections of many pictures, N rows in columns of small types: a data set has millions."""

    images: NDArray[np.int32]  # (N,) index of the picture
    categories: NDArray[np.int32]  # (N,) index of the category
    ranks: NDArray[np.int32]  # (N,) place in the model's list of that picture, which orders equal scores
    scores: NDArray[np.float32]  # (N,)
    boxes: NDArray[np.float32]  # (N, 4) XYWH, pixels
    masks: NDArray[np.object_] | None = None  # (N,) `counts` of COCO's RLE, in the size of the picture

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Detections:
        return Detections(*(column[rows] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """The columns, in the order of the constructor; without masks where there are none."""
        columns = (self.images, self.categories, self.ranks, self.scores, self.boxes)
        return columns if self.masks is None else (*columns, self.masks)

    @classmethod
    def empty(cls) -> Detections:
        """No row."""
        rows = np.zeros(0, dtype=np.int32)
        return cls(rows, rows, rows, np.zeros(0, dtype=np.float32), np.zeros((0, 4), dtype=np.float32))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """All rows of `parts`, one after the other."""
        parts = [part for part in parts if len(part)]  # those without rows may lack masks
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts))))


class TopPerCategory:
    """The `limit` best detections of each category over a data set, in memory for hardly more than those.

    Equal scores are ordered by picture, then by rank, so that the choice does not depend on the order of additions, nor
    on how pictures are split over processes.
    """

    def __init__(self, num_categories: int, limit: int = FIXED_DETECTIONS, buffer: int = 4_000_000) -> None:
        """`buffer`: rows taken in, at least, before what is no longer among the best is dropped."""
        self.limit = limit
        self.buffer = buffer
        self._kept = Detections.empty()
        self._new: list[Detections] = []
        self._num_new = 0
        self._floor = np.full(num_categories, -np.inf)  # what a detection has to reach

    def add(self, detections: Detections) -> None:
        """Take in detections of one or more pictures that were not added before."""
        detections = detections[detections.scores >= self._floor[detections.categories]]
        self._new.append(detections)
        self._num_new += len(detections)
        if self._num_new > max(self.buffer, len(self._kept)):  # sorting the kept ones over and over would take long
            self._drop_surplus()

    def result(self) -> Detections:
        """The best, by category, and there from the best down."""
        self._drop_surplus()
        return self._kept

    def _drop_surplus(self) -> None:
        rows = Detections.joined([self._kept, *self._new])
        rows = rows[np.lexsort((rows.ranks, rows.images, -rows.scores, rows.categories))]
        places = np.arange(len(rows)) - np.searchsorted(rows.categories, rows.categories)  # within the category
        last = places == self.limit - 1
        self._floor[rows.categories[last]] = rows.scores[last]
        self._kept, self._new, self._num_new = rows[places < self.limit], [], 0


# ----------------------------------------------------------------------------------------------- ground truth


class LVISTruth:
    """What an LVIS json file says, with pictures and categories counted in the order of their ids.

    Attributes:
        image_ids, category_ids: (number,) sorted.
        names: of the categories.
        groups: name of a frequency ("rare", ...) -> indices of its categories; empty where the file has none.

    Args:
        content: of the file.
        masks: read masks as well.

    Raises:
        ValueError: a key that the measure needs is missing, or a name of a frequency is none of LVIS's.
    """

    def __init__(self, content: Mapping[str, Any], masks: bool = False) -> None:
        images = sorted(content["images"], key=lambda image: image["id"])
        categories = sorted(content["categories"], key=lambda category: category["id"])
        annotations = content["annotations"]
        _require_keys(images, "images", ("neg_category_ids", "not_exhaustive_category_ids"))
        _require_keys(annotations, "annotations", ("image_id", "category_id", "bbox", "area"))
        self.image_ids: Ints = np.array([image["id"] for image in images], dtype=np.int64)
        self.category_ids: Ints = np.array([category["id"] for category in categories], dtype=np.int64)
        self.names = [str(category["name"]) for category in categories]
        self.groups = _frequency_groups(categories)
        columns = [np.array([item[key] for item in annotations], np.int64) for key in ("image_id", "category_id")]
        codes = self._codes(*columns)
        self._order = np.argsort(codes, kind="stable")
        self.codes = codes[self._order]  # (annotations,) sorted
        self.boxes: Floats = np.array([item["bbox"] for item in annotations], np.float64).reshape(-1, 4)[self._order]
        self.areas: Floats = np.array([item["area"] for item in annotations], np.float64)[self._order]
        self.ignored = np.array([bool(item.get("ignore", 0)) for item in annotations], dtype=bool)[self._order]
        self.sizes = [(image["height"], image["width"]) for image in images] if masks else []
        self.masks = np.array([self._encoded(item) for item in annotations] if masks else [], object)
        self.masks = self.masks[self._order] if masks else self.masks
        self.judged = np.union1d(self.codes, self._listed(images, "neg_category_ids"))
        self.not_exhaustive = self._listed(images, "not_exhaustive_category_ids")

    def image_indices(self, ids: Ints) -> Ints:
        """Their places in `image_ids`.

        Raises:
            ValueError: an id that the file does not have.
        """
        return _indices(ids, self.image_ids, "pictures")

    def category_indices(self, ids: Ints) -> Ints:
        """Their places in `category_ids`.

        Raises:
            ValueError: an id that the file does not have.
        """
        return _indices(ids, self.category_ids, "categories")

    def encoded(self, images: NDArray[Any], masks: NDArray[np.object_]) -> list[dict[str, Any]]:
        """RLE (N) of the `masks` of pictures."""
        return [{"size": list(self.sizes[i]), "counts": counts} for i, counts in zip(images.tolist(), masks)]

    def _encoded(self, annotation: Mapping[str, Any]) -> bytes | str:
        """The `counts` of an object's mask: polygons or RLE, empty where it has none."""
        place = int(self.image_indices(np.array([annotation["image_id"]], dtype=np.int64))[0])
        height, width = self.sizes[place]
        shape = annotation.get("segmentation") or {"size": [height, width], "counts": [height * width]}
        if isinstance(shape, list):
            return mask_util.merge(mask_util.frPyObjects(shape, height, width))["counts"]
        if isinstance(shape["counts"], list):
            return mask_util.frPyObjects(shape, height, width)["counts"]
        return shape["counts"]

    def code(self, images: NDArray[Any], categories: NDArray[Any]) -> Ints:
        """One number for each pair of indices, sorted by category and then by picture."""
        return categories.astype(np.int64) * len(self.image_ids) + images

    def _codes(self, image_ids: Ints, category_ids: Ints) -> Ints:
        return self.code(self.image_indices(image_ids), self.category_indices(category_ids))

    def _listed(self, images: Sequence[Mapping[str, Any]], key: str) -> Ints:
        """Sorted codes of the pairs that the pictures list under `key`."""
        pairs = np.array([(image["id"], number) for image in images for number in image[key]], np.int64).reshape(-1, 2)
        return np.unique(self._codes(pairs[:, 0], pairs[:, 1]))


def _require_keys(items: Sequence[Mapping[str, Any]], kind: str, keys: Sequence[str]) -> None:
    for item in items:
        missing = [key for key in keys if key not in item]
        if missing:
            raise ValueError(
                f"one of the {kind} (id {item.get('id')!r}) has no {missing}: this is no file in LVIS v1's format; "
                "data sets in COCO's format are evaluated with evaluator_type 'coco'"
            )


def _frequency_groups(categories: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    if not any("frequency" in category for category in categories):
        return {}
    groups: dict[str, list[int]] = {name: [] for name in FREQUENCIES.values()}
    for index, category in enumerate(categories):
        if category.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"category {category['name']!r} has the frequency {category.get('frequency')!r}; "
                f"LVIS knows {list(FREQUENCIES)}"
            )
        groups[FREQUENCIES[category["frequency"]]].append(index)
    return groups


def _indices(ids: Ints, known: Ints, kind: str) -> Ints:
    places = np.searchsorted(known, ids)
    wrong = ids != known[np.minimum(places, len(known) - 1)] if len(known) else np.ones(len(ids), dtype=bool)
    if wrong.any():
        raise ValueError(f"the ids {sorted(set(ids[wrong].tolist()))[:5]} are none of the file's {len(known)} {kind}")
    return places


# -------------------------------------------------------------------------------------------------- precision


def lvis_precision(truth: LVISTruth, detections: Detections, masks: bool = False) -> PrecisionTable:
    """Precision of `detections` by LVIS's rules, all of which count: limits come before.

    With `masks`, by the masks of both sides in place of the boxes. Of equal scores in a picture the lower rank comes
    first, and of equal scores in a category the earlier picture.
    """
    codes = truth.code(detections.images, detections.categories)
    judged = _is_in(codes, truth.judged)
    rows, codes = detections[judged], codes[judged]
    order = np.lexsort((rows.ranks, -rows.scores, codes))
    rows, codes = rows[order], codes[order]
    shape = (len(IOU_THRESHOLDS), len(RECALLS), len(truth.names), len(AREA_RANGES))
    values = np.full(shape, -1.0)
    first = np.arange(len(truth.names) + 1) * len(truth.image_ids)
    rows_of, objects_of = np.searchsorted(codes, first), np.searchsorted(truth.codes, first)
    for category in range(len(truth.names)):
        objects = slice(objects_of[category], objects_of[category + 1])
        found = slice(rows_of[category], rows_of[category + 1])
        if objects.start < objects.stop:
            values[:, :, category] = _category_precision(truth, objects, rows[found], codes[found], masks)
    return PrecisionTable(values, truth.names)


def _category_precision(truth: LVISTruth, objects: slice, rows: Detections, codes: Ints, masks: bool) -> Floats:
    """(IoUs, recalls, areas) of one category; -1 for areas without an object that counts."""
    shapes: Any = rows.boxes.astype(np.float64)
    true_shapes: Any = truth.boxes[objects]
    areas = shapes[:, 2] * shapes[:, 3]
    if masks:
        shapes = truth.encoded(rows.images, rows.masks) if rows.masks is not None else []
        true_shapes = truth.encoded(truth.codes[objects] % len(truth.image_ids), truth.masks[objects])
        areas = np.array(mask_util.area(shapes) if shapes else [], dtype=np.float64)
    outside = _outside(areas)  # (areas, N)
    ignored = truth.ignored[objects] | _outside(truth.areas[objects])  # (areas, objects)
    hit = np.zeros((len(AREA_RANGES), len(IOU_THRESHOLDS), len(rows)), dtype=bool)
    uncounted = np.zeros_like(hit)  # matched to an ignored object
    for of_picture, of_truth in _pairs(codes, truth.codes[objects]):
        overlaps = mask_util.iou(shapes[of_picture], true_shapes[of_truth], [0] * (of_truth.stop - of_truth.start))
        hit[..., of_picture], uncounted[..., of_picture] = match(overlaps, ignored[:, of_truth])
    unmatched = ~(hit | uncounted)
    uncounted |= unmatched & (outside | _is_in(codes, truth.not_exhaustive))[:, None]
    alarms = unmatched & ~uncounted
    order = np.argsort(-rows.scores, kind="stable")
    hit, alarms = hit[..., order], alarms[..., order]
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), len(AREA_RANGES)), -1.0)
    for area, number in enumerate((~ignored).sum(axis=1).tolist()):
        for threshold in range(len(IOU_THRESHOLDS) if number else 0):
            precision[threshold, :, area] = interpolate(hit[area, threshold], alarms[area, threshold], number)
    return precision


def match(overlaps: Floats, ignored: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Assign detections of a picture and category, best first, to objects, at each of IOU_THRESHOLDS.

    A detection takes the free object that it overlaps most, those that count before those that are ignored; of equal
    overlaps the last.

    Args:
        overlaps: (N, objects) IoU, best-scored detection first.
        ignored: (areas, objects) objects that do not count.

    Returns:
        (areas, IoUs, N) twice: matched to an object that counts, and to one that is ignored.
    """
    num_areas, num_objects = ignored.shape
    shape = (num_areas, len(IOU_THRESHOLDS), len(overlaps))
    hit, uncounted = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    free = np.ones((num_areas, len(IOU_THRESHOLDS), num_objects), dtype=bool)
    counts = np.broadcast_to(~ignored[:, None], free.shape)
    thresholds = IOU_THRESHOLDS[:, None]
    for place in np.flatnonzero(overlaps.max(axis=1) >= _LOWEST_IOU):
        fits = free & (overlaps[place] >= thresholds)
        preferred = fits & counts
        is_hit = preferred.any(axis=-1)
        fits = np.where(is_hit[..., None], preferred, fits)
        taken = fits.any(axis=-1)
        best = num_objects - 1 - np.where(fits, overlaps[place], -1.0)[..., ::-1].argmax(axis=-1)  # (areas, IoUs)
        free &= ~((np.arange(num_objects) == best[..., None]) & taken[..., None])
        hit[..., place], uncounted[..., place] = is_hit, taken & ~is_hit
    return hit, uncounted


def _pairs(found: Ints, known: Ints) -> Iterator[tuple[slice, slice]]:
    """For each value that both sorted arrays have, its range in the one and in the other."""
    for value in np.intersect1d(found, known):
        left, right = (np.searchsorted(array, [value, value + 1]) for array in (found, known))
        yield slice(int(left[0]), int(left[1])), slice(int(right[0]), int(right[1]))


def _outside(areas: Floats) -> NDArray[np.bool_]:
    """(AREA_RANGES, N): which areas are not in a range."""
    ranges = np.array(list(AREA_RANGES.values()))[:, :, None]
    return (areas < ranges[:, 0]) | (areas > ranges[:, 1])


def _is_in(values: Ints, known: Ints) -> NDArray[np.bool_]:
    """Which of `values` are among `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def lvis_metrics(table: PrecisionTable, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """`PrecisionTable.metrics` and APr, APc and APf: the AP of rare, common and frequent categories, in percent."""
    by_frequency = {f"AP{name[0]}": table.average(categories=indices) for name, indices in groups.items()}
    return {**table.metrics(), **by_frequency}
