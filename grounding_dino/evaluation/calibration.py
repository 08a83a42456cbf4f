"""Thresholds from labelled pictures: which detections are right, what a threshold would keep of them, which is best."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.thresholds import BOX_THRESHOLD, CategoryThresholds

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Floats = NDArray[np.float64]

MIN_OBJECTS = 10
LEAST_SCORE = 0.01  # below it no detection is worth a threshold; a model gives hundreds of these in every picture
_MOST_CUTS = 4096  # thresholds that are tried; more scores than that lie close together
_DECIMALS = 4  # of thresholds: what is measured is what the file says
_ABOVE_ALL = 1.0


@dataclass(frozen=True)
class JudgedCategory:
    """One category's detections in a set of labelled pictures, best first, and which of them are right.

    Attributes:
        scores: (N,) float32.
        right: (N,) bool: matched to an object that no better one is matched to. Those in crowd regions are left out.
        num_objects: that are no crowd.
    """

    name: str
    scores: NDArray[np.float32]
    right: NDArray[np.bool_]
    num_objects: int

    def kept(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """For each of (T,) thresholds how many detections exceed it, and how many right ones."""
        ascending = self.scores[::-1]
        count = len(ascending) - np.searchsorted(ascending, thresholds.astype(np.float32), side="right")
        return count.astype(np.float64), np.concatenate([[0], np.cumsum(self.right)])[count].astype(np.float64)

    def measures(self, threshold: float) -> Measures:
        """What `threshold` gives."""
        count, right = (int(values[0]) for values in self.kept(np.array([threshold])))
        return Measures(self.num_objects, count, right)


@dataclass(frozen=True)
class Measures:
    """How well detections fit objects."""

    num_objects: int
    num_detections: int
    num_right: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right; NaN without any."""
        return self.num_right / self.num_detections if self.num_detections else float("nan")

    @property
    def recall(self) -> float:
        """Share of the objects that are found; NaN without any."""
        return self.num_right / self.num_objects if self.num_objects else float("nan")

    @property
    def f1(self) -> float:
        """The harmonic mean of both; NaN without objects."""
        if not self.num_objects:
            return float("nan")
        return 2 * self.num_right / (self.num_detections + self.num_objects)

    def __add__(self, other: Measures) -> Measures:
        return Measures(
            self.num_objects + other.num_objects,
            self.num_detections + other.num_detections,
            self.num_right + other.num_right,
        )


def judge(truth: COCO, results: Sequence[Mapping[str, Any]], iou: float = 0.5) -> list[JudgedCategory]:
    """Match detections with objects as COCO's evaluation does: in order of their scores, each to the object of its
    category and picture that it overlaps most, from `iou` on, and that is free.

    So the match of a detection does not depend on worse ones, nor on the threshold that drops them.

    Args:
        results: in COCO's results format, with boxes.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = truth.loadRes([dict(result) for result in results]) if results else _without_detections(truth)
        matching = COCOeval(truth, found, "bbox")
        matching.params.iouThrs = np.array([iou])
        matching.params.areaRng, matching.params.areaRngLbl = [[0, 1e10]], ["all"]
        matching.params.maxDets = [max(1, len(results))]
        matching.evaluate()
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for picture in matching.evalImgs:
        if picture is not None:
            parts[picture["category_id"]].append(picture)
    return [_judged(str(truth.cats[number]["name"]), parts[number]) for number in matching.params.catIds]


def _judged(name: str, pictures: Sequence[dict[str, Any]]) -> JudgedCategory:
    empty = np.zeros(0)
    scores = np.concatenate([empty, *(picture["dtScores"] for picture in pictures)])
    matched = np.concatenate([empty, *(picture["dtMatches"][0] for picture in pictures)]) > 0
    counts = ~np.concatenate([empty, *(picture["dtIgnore"][0] for picture in pictures)]).astype(bool)
    objects = sum(int((~np.asarray(picture["gtIgnore"], dtype=bool)).sum()) for picture in pictures)
    order = np.argsort(-scores[counts], kind="stable")
    return JudgedCategory(name, scores[counts][order].astype(np.float32), matched[counts][order], objects)


def _without_detections(truth: COCO) -> COCO:
    found = COCO()
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    found.createIndex()
    return found


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and which categories have theirs for another reason than their own detections.

    Attributes:
        pooled: categories of too few objects.
        without_objects: these have no threshold of their own.
        unreachable: no threshold gives them the wanted precision; theirs is 1, which nothing exceeds.
    """

    thresholds: CategoryThresholds
    pooled: Sequence[str] = ()
    without_objects: Sequence[str] = ()
    unreachable: Sequence[str] = ()


@dataclass(frozen=True)
class Calibrator:
    """Chooses thresholds from what was right in labelled pictures.

    A category's best cut on a handful of objects is chance. So each category with objects also counts `min_objects`
    objects of the pool, with what a threshold keeps of these: the mean over the categories that have at least
    `min_objects` themselves, or over all if none has. A category of fewer takes the pool's threshold, which is the
    default for unknown names too.

    Attributes:
        precision: the share of detections that are to be right; of the thresholds that reach it in the category and
            with the pool, the lowest is taken. None: the best F1.
        min_objects: of a category.
    """

    precision: float | None = None
    min_objects: int = MIN_OBJECTS

    def __call__(self, categories: Sequence[JudgedCategory]) -> Calibration:
        """The thresholds.

        Raises:
            ValueError: no category has an object.
        """
        with_objects = [category for category in categories if category.num_objects]
        if not with_objects:
            raise ValueError("no picture has an object to calibrate thresholds with; label some")
        pool = _Pool([each for each in with_objects if each.num_objects >= self.min_objects] or with_objects)
        common = self._best(pool.cuts(), *pool.kept(pool.cuts()), 1.0)
        default = _ABOVE_ALL if common is None else common
        thresholds: dict[str, float] = {}
        report: dict[str, list[str]] = {"pooled": [], "unreachable": []}
        for category in with_objects:
            if category.num_objects < self.min_objects:
                own = common
                report["pooled"].append(category.name)
            else:
                own = self._of_category(category, pool)
            if own is None:
                report["unreachable"].append(category.name)
            thresholds[category.name] = _ABOVE_ALL if own is None else own
        without = [category.name for category in categories if not category.num_objects]
        return Calibration(CategoryThresholds(default, thresholds), without_objects=without, **report)

    def _of_category(self, category: JudgedCategory, pool: _Pool) -> float | None:
        cuts = _cuts(category.scores)
        (count, right), (pool_count, pool_right) = category.kept(cuts), pool.kept(cuts)
        if self.precision is not None:  # with the pool alone, the category itself could fall short of it
            allowed = (right >= self.precision * count) & (count > 0)
            cuts, count, right, pool_count, pool_right = (
                values[allowed] for values in (cuts, count, right, pool_count, pool_right)
            )
        weight = float(self.min_objects)
        return self._best(cuts, count + weight * pool_count, right + weight * pool_right, category.num_objects + weight)

    def _best(self, cuts: Floats, count: Floats, right: Floats, num_objects: float) -> float | None:
        """The best of thresholds (T,), given what they keep; None where none reaches the wanted precision."""
        if self.precision is None:
            return float(cuts[np.argmax(2 * right / (count + num_objects))])
        reached = cuts[(right >= self.precision * count) & (count > 0)]
        return float(reached.min()) if len(reached) else None


class _Pool:
    """Categories together, each with the same weight, counted for one object of theirs."""

    def __init__(self, categories: Sequence[JudgedCategory]) -> None:
        self._categories = categories

    def cuts(self) -> Floats:
        return _cuts(np.concatenate([category.scores for category in self._categories]))

    def kept(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """As of a category, per object."""
        counts, rights = zip(
            *([part / category.num_objects for part in category.kept(thresholds)] for category in self._categories)
        )
        return np.mean(counts, axis=0), np.mean(rights, axis=0)


def _cuts(scores: NDArray[np.float32]) -> Floats:
    """Thresholds between neighbouring scores, above all and below all of them, highest first."""
    distinct = np.unique(np.concatenate([[LEAST_SCORE], scores.astype(np.float64), [_ABOVE_ALL]]))
    between = np.unique(((distinct[1:] + distinct[:-1]) / 2).round(_DECIMALS))
    if len(between) > _MOST_CUTS:
        between = between[np.linspace(0, len(between) - 1, _MOST_CUTS).round().astype(int)]
    return between[::-1]


# ------------------------------------------------------------------------------------------------------ reliability


@dataclass(frozen=True)
class Reliability:
    """Scores as probabilities: detections in classes of their score, and the share of each class that is right.

    Attributes:
        confidence: (bins,) mean scores; NaN in empty classes.
        share_right: (bins,) likewise.
        counts: (bins,) detections.
    """

    name: str
    confidence: Floats
    share_right: Floats
    counts: NDArray[np.int64] = field(repr=False)

    @property
    def expected_error(self) -> float:
        """The expected calibration error: the mean distance of score and share, weighted by detections; NaN without
        any (Guo et al., On Calibration of Modern Neural Networks, 2017)."""
        seen = self.counts > 0
        if not seen.any():
            return float("nan")
        return float(np.average(np.abs(self.confidence - self.share_right)[seen], weights=self.counts[seen]))


LEAST_RELIABILITY_SCORE = 0.05  # below are most of a model's queries, which show nothing


def reliability_of(categories: Sequence[JudgedCategory], name: str, bins: int = 10) -> Reliability:
    """Of the detections of categories together, from a score of :data:`LEAST_RELIABILITY_SCORE` on."""
    scores = np.concatenate([category.scores for category in categories]).astype(np.float64)
    right = np.concatenate([category.right for category in categories])
    seen = scores >= LEAST_RELIABILITY_SCORE
    place = np.minimum((scores[seen] * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, scores[seen], bins) / counts
        share = np.bincount(place, right[seen], bins) / counts
    return Reliability(name, confidence, share, counts)


def total(measures: Sequence[Measures]) -> Measures:
    """All categories' objects and detections together."""
    return sum(measures, Measures(0, 0, 0))


def mean_f1(measures: Sequence[Measures]) -> float:
    """The mean over categories with objects; NaN without any."""
    values = [each.f1 for each in measures if each.num_objects]
    return float(np.mean(values)) if values else float("nan")


def compared(
    categories: Sequence[JudgedCategory], thresholds: CategoryThresholds
) -> list[tuple[JudgedCategory, Measures, Measures]]:
    """For each category what its threshold gives, and what the predictor's own default gives."""
    return [
        (category, category.measures(thresholds.of(category.name)), category.measures(BOX_THRESHOLD))
        for category in categories
    ]
