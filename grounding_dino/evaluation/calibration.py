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

POOL_WEIGHT = 3
LEAST_SCORE = 0.01  # below it no detection is worth a threshold; a model gives hundreds of these in every picture
_DECIMALS = 4  # of thresholds: what is measured is what the file says
_ABOVE_ALL = 1.0
_LEAST_WIDTH = 0.05  # in logits, a few steps of the grid


@dataclass(frozen=True)
class JudgedCategory:
    """One category's detections in a set of labelled pictures, best first, and which of them are right.

    Attributes:
        scores: (N,) float32.
        right: (N,) bool: matched to an object that no better one is matched to. Those in crowd regions are left out.
        num_objects: that are no crowd.
        pictures: (N,) place of each detection's picture in the set.
        objects_by_picture: (P,) of `num_objects`.
    """

    name: str
    scores: NDArray[np.float32]
    right: NDArray[np.bool_]
    num_objects: int
    pictures: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    objects_by_picture: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

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
    place = {number: index for index, number in enumerate(matching.params.imgIds)}
    return [_judged(str(truth.cats[number]["name"]), parts[number], place) for number in matching.params.catIds]


def _judged(name: str, pictures: Sequence[dict[str, Any]], place: Mapping[int, int]) -> JudgedCategory:
    empty = np.zeros(0)
    scores = np.concatenate([empty, *(picture["dtScores"] for picture in pictures)])
    matched = np.concatenate([empty, *(picture["dtMatches"][0] for picture in pictures)]) > 0
    counts = ~np.concatenate([empty, *(picture["dtIgnore"][0] for picture in pictures)]).astype(bool)
    places = np.repeat(
        np.array([place[picture["image_id"]] for picture in pictures], np.int64),
        [len(picture["dtScores"]) for picture in pictures],
    )
    objects = np.zeros(len(place), np.int64)
    for picture in pictures:
        objects[place[picture["image_id"]]] += int((~np.asarray(picture["gtIgnore"], dtype=bool)).sum())
    order = np.argsort(-scores[counts], kind="stable")
    return JudgedCategory(
        name,
        scores[counts][order].astype(np.float32),
        matched[counts][order],
        int(objects.sum()),
        places[counts][order],
        objects,
    )


def _without_detections(truth: COCO) -> COCO:
    found = COCO()
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    found.createIndex()
    return found


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and which categories have theirs for another reason than their own detections.

    Attributes:
        without_objects: these have no threshold of their own.
        unreachable: no threshold gives them the wanted precision; theirs is 1, which nothing exceeds.
    """

    thresholds: CategoryThresholds
    without_objects: Sequence[str] = ()
    unreachable: Sequence[str] = ()


@dataclass(frozen=True)
class Calibrator:
    """Chooses thresholds from what was right in labelled pictures.

    The best cut through a handful of scores is chance. Two things steady it. Scores are spread out (in logits, by a
    Gaussian of Silverman's width: narrower the more objects a category has), so that a cut does not follow single
    detections. And each category counts some objects more than its own, with what thresholds keep of the *pool*: the
    mean over all categories with objects. The pool's threshold is the default for unknown names.

    In simulations with 1 to 1000 objects and more or less different categories, half to a tenth of the F1 that the best
    cut through the plain scores loses was lost; a common threshold for all categories of few objects was worse.

    Attributes:
        precision: the share of detections that are to be right; the lowest threshold is taken that has it both in the
            plain and in the steadied counts. None: the best F1.
        pool_weight: objects of the pool that are added to those of a category.
    """

    precision: float | None = None
    pool_weight: float = POOL_WEIGHT

    def __call__(self, categories: Sequence[JudgedCategory]) -> Calibration:
        """The thresholds.

        Raises:
            ValueError: no category has an object.
        """
        with_objects = [category for category in categories if category.num_objects]
        if not with_objects:
            raise ValueError("no picture has an object to calibrate thresholds with; label some")
        pool = np.mean([_per_object(category) for category in with_objects], axis=0)  # (2, T)
        default = self._best(pool, pool, 1.0)
        spread = _spread(with_objects)
        thresholds: dict[str, float] = {}
        unreachable = []
        for category in with_objects:
            width = max(0.9 * spread * category.num_objects**-0.2, _LEAST_WIDTH)  # Silverman's rule
            steadied = _spread_out(category, width) + self.pool_weight * pool
            own = self._best(np.stack(category.kept(_GRID)), steadied, category.num_objects + self.pool_weight)
            if own is None:
                unreachable.append(category.name)
            thresholds[category.name] = _ABOVE_ALL if own is None else own
        without = [category.name for category in categories if not category.num_objects]
        common = _ABOVE_ALL if default is None else default
        return Calibration(CategoryThresholds(common, thresholds), without, unreachable)

    def _best(self, plain: Floats, steadied: Floats, num_objects: float) -> float | None:
        """The best threshold of the grid, given what each keeps, (2, T) all and right ones; None where none will do."""
        count, right = steadied
        if self.precision is None:
            return float(_GRID[np.argmax(2 * right / (count + num_objects))])
        enough = [(kept > 0) & (hits >= self.precision * kept) for kept, hits in (plain, steadied)]
        reached = _GRID[enough[0] & enough[1]]
        return float(reached.min()) if len(reached) else None


def _logits(values: NDArray[np.floating[Any]]) -> Floats:
    clipped = np.clip(values.astype(np.float64), 1e-3, 1 - 1e-3)
    return np.log(clipped / (1 - clipped))


# Thresholds that are tried, evenly spread in logits, in as many digits as are written, so that what is measured is what
# the file says. The lowest keeps all detections, the highest next to none.
_LEAST_LOGIT, _MOST_LOGIT = _logits(np.array([LEAST_SCORE, 0.998])).tolist()
_GRID: Floats = np.unique((1 / (1 + np.exp(-np.linspace(_LEAST_LOGIT, _MOST_LOGIT, 400)))).round(_DECIMALS))


def _spread(categories: Sequence[JudgedCategory]) -> float:
    """The standard deviation, in logits, of right detections inside their categories; 1 where nothing tells."""
    variances = [_logits(each.scores[each.right]).var() for each in categories if each.right.sum() > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 1.0


def _per_object(category: JudgedCategory) -> Floats:
    """(2, T): how many detections the grid's thresholds keep, and right ones, for one object."""
    return np.stack(category.kept(_GRID)) / category.num_objects


def _spread_out(category: JudgedCategory, width: float) -> Floats:
    """(2, T): how many detections, and right ones, the grid's thresholds keep on average if logits vary by `width`."""
    from scipy.special import ndtr

    places = _logits(_GRID)
    centres = np.concatenate([places[:1], (places[1:] + places[:-1]) / 2, places[-1:]])
    share_kept = ndtr((centres - places[:, None]) / width)  # (T, T + 1): of detections between two thresholds
    kept = np.stack(category.kept(_GRID))  # at each threshold, so that differences are of intervals
    total = np.array([[len(category.scores)], [category.right.sum()]])
    between = -np.diff(np.concatenate([total, kept, np.zeros((2, 1))], axis=1), axis=1)  # (2, T + 1)
    return np.asarray(between @ share_kept.T)


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


def gain_over_default(
    categories: Sequence[JudgedCategory], thresholds: CategoryThresholds, draws: int = 1000
) -> tuple[float, float]:
    """By how much the mean F1 is better than with the predictor's own default, and the standard error of that.

    The error is that over sets drawn from the pictures with replacement (a paired bootstrap, always the same draws).
    Both are NaN where there is no object.
    """
    if not any(category.num_objects for category in categories):
        return float("nan"), float("nan")
    num_pictures = len(categories[0].objects_by_picture)
    values = (thresholds.of, lambda name: BOX_THRESHOLD)
    counts = np.stack(
        [[_by_picture(category, value(category.name)) for value in values] for category in categories], axis=-1
    )  # (2, 3, P, K): thresholds and default; detections, right ones, objects
    rng = np.random.default_rng(0)
    weights = rng.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), size=draws)  # (draws, P)
    gains = _mean_f1_of(np.concatenate([np.ones((1, num_pictures)), weights]) @ counts)
    return float(gains[0, 0] - gains[1, 0]), float(np.nanstd((gains[0] - gains[1])[1:]))


def _by_picture(category: JudgedCategory, threshold: float) -> Floats:
    """(3, P): detections, right ones and objects of each picture."""
    number = len(category.objects_by_picture)
    kept = category.scores > np.float32(threshold)
    parts = (np.bincount(category.pictures[mask], minlength=number) for mask in (kept, kept & category.right))
    return np.stack([*parts, category.objects_by_picture]).astype(np.float64)


def _mean_f1_of(counts: Floats) -> Floats:
    """(2, draws) from counts (2, 3, draws, K): the mean over the categories with objects in the draw; NaN of none."""
    detected, right, objects = counts[:, 0], counts[:, 1], counts[:, 2]
    f1 = np.where(objects > 0, 2 * right / np.maximum(detected + objects, 1), 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(f1.sum(axis=-1) / (objects > 0).sum(axis=-1))
