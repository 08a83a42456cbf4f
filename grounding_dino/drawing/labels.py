"""Places for labels: inside the picture, near their objects, and apart from one another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from grounding_dino.drawing.text import MIN_TEXT_SIZE, fit_text, label_size

import numpy as np
from numpy.typing import NDArray

Rectangle = tuple[int, int, int, int]  # x0 y0 x1 y1 in pixels, the last two exclusive
Point = tuple[int, int]

SIZES = (1.0, 0.85, 0.7)  # of the text, tried one after the other until all labels have a place
FEW = 8  # labels may cover any part of a small picture
MOST_COVERED = 0.25  # of a picture by more labels
MOST_WITHOUT = 100  # labels in a row without a place: where hundreds of objects overlap, the next seldom has one
MOST_HIDDEN = 0.5  # of one object, or of several together, by the label of another
_WIDEST = 0.6  # of a picture's width
_NEAR_ENOUGH = 0.6  # of a label's height: farther from its object it is tied to it by a line
_RINGS = 4
_FARTHEST = 2.5  # of a label's height, from its object

# What a place costs, in no unit but against each other.
_TOUCHING = {"above": 0.0, "below": 0.15, "inside": 0.3, "beside": 0.25}
_SLIDE = 0.15  # away from the left end
_AWAY, _DISTANCE = 0.9, 0.25  # for not touching the object, and for each label's height from it
_HIDES = 1.5  # the whole of an object
_LIES_ON = 0.4  # with all of the label on another object


class Place(NamedTuple):
    """Where a label goes: its upper left corner, and from where to where the line to its object, if it needs one."""

    corner: Point
    leader: tuple[Point, Point] | None = None


@dataclasses.dataclass(frozen=True)
class PlacedLabel:
    """A label that found a place: which it is, the text as it fits, its font, rectangle and line to its object."""

    index: int
    text: str
    font: Any
    rectangle: Rectangle
    leader: tuple[Point, Point] | None


class LabelLayout:
    """Gives labels their places one after the other; none lies on one before."""

    def __init__(self, width: int, height: int, boxes: Any = (), gap: int = 1) -> None:
        """
        Args:
            width, height: of the picture.
            boxes: (N, 4) XYXY of the objects, which labels should not hide.
            gap: pixels between labels.
        """
        self.width, self.height, self.gap = width, height, gap
        self._boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        self._taken = np.zeros((0, 4))

    def place(self, size: Point, box: Sequence[float], centred: bool = False, forced: bool = False) -> Place | None:
        """Choose and keep a place for a label of `size` (w, h); None where all near the object are taken.

        Args:
            box: XYXY of the object.
            centred: the label belongs into the middle of the box, not at its edge.
            forced: rather over other labels than nowhere; such a label may be larger than the picture.
        """
        if (size[0] > self.width or size[1] > self.height) and not forced:
            return None
        x0, y0, x1, y1 = (float(value) for value in box)
        touching, costs = _in_the_middle(size, box) if centred else _at_edges(size, (x0, y0, x1, y1))
        chosen = self._best(size, box, self._inside(touching, size), costs, centred)
        if chosen is None:
            corners = self._inside(_around(size, (x0, y0, x1, y1)), size)
            away = _gap_between(corners, size, box) / size[1]
            chosen = self._best(size, box, corners, _AWAY + _DISTANCE * away, centred)
        if chosen is None and forced:
            corners = np.concatenate([self._inside(touching, size), corners])
            chosen = corners[int(_shared(corners, size, self._taken).sum(axis=1).argmin())]
        if chosen is None:
            return None
        x, y = int(chosen[0]), int(chosen[1])
        self._taken = np.concatenate([self._taken, [(x, y, x + size[0], y + size[1])]])
        return Place((x, y), self._leader((x, y, x + size[0], y + size[1]), box))

    def _inside(self, corners: NDArray[np.float64], size: Point) -> NDArray[np.float64]:
        """Corners moved so that the label is inside the picture."""
        limits = (max(self.width - size[0], 0), max(self.height - size[1], 0))
        moved: NDArray[np.float64] = np.rint(corners).clip(0, limits)
        return moved

    def _best(
        self, size: Point, box: Sequence[float], corners: NDArray[np.float64], costs: NDArray[np.float64], centred: bool
    ) -> NDArray[np.float64] | None:
        """The cheapest free corner, and None if there is none."""
        gap = self.gap
        taken = self._taken + (-gap, -gap, gap, gap)
        free = (_shared(corners, size, _about(corners, size, taken)) == 0).all(axis=1)
        corners, costs = corners[free], costs[free]
        away = _gap_between(corners, size, box) / size[1]
        too_far = away > _FARTHEST
        if not centred:  # pushed away from its object by the picture's border
            costs = costs + np.where(away > _NEAR_ENOUGH, _AWAY + _DISTANCE * away, 0) * (costs < _AWAY)
        hides, lies_on = self._hidden(corners, size)
        own = _shared(corners, size, np.asarray([box]))[:, 0] / max(1.0, (box[2] - box[0]) * (box[3] - box[1]))
        costs = np.where(too_far | (hides - own > MOST_HIDDEN), np.inf, costs + _HIDES * hides + _LIES_ON * lies_on)
        return corners[int(costs.argmin())] if np.isfinite(costs).any() else None

    def _hidden(self, corners: NDArray[np.float64], size: Point) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) how much of objects labels at these corners hide, in sum, and (N,) how much of the label is on one."""
        boxes = _about(corners, size, self._boxes)
        if not len(boxes):
            return np.zeros(len(corners)), np.zeros(len(corners))
        shared = _shared(corners, size, boxes)  # (N, objects)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).clip(1.0)
        return (shared / areas).sum(axis=1), shared.max(axis=1) / (size[0] * size[1])

    def _leader(self, label: Rectangle, box: Sequence[float]) -> tuple[Point, Point] | None:
        """The line from a label to its object, if it is not near enough to be seen as its."""
        x, x_object = _nearest(label[0], label[2] - 1, box[0], box[2])
        y, y_object = _nearest(label[1], label[3] - 1, box[1], box[3])
        if max(abs(x - x_object), abs(y - y_object)) <= _NEAR_ENOUGH * (label[3] - label[1]):
            return None
        end = min(max(round(x_object), 0), self.width - 1), min(max(round(y_object), 0), self.height - 1)
        return (round(x), round(y)), end


def lay_out_labels(
    texts: Sequence[str],
    boxes: Any,
    picture: Point,
    size: int,
    scores: Sequence[float] | None = None,
    centred: bool = False,
) -> list[PlacedLabel]:
    """Places for the labels of N objects; none is outside the picture, and no two overlap.

    All letters of a picture have one size. Labels are placed by score, the best first. Where one finds no place, all
    are made smaller, to 70 % and never below 10 pixels. Those that then find none near their object that leaves the
    other objects visible, and those beyond 25 % of the picture, are left out: the worst. After 100 in a row that found
    no place no more are tried.

    Args:
        texts: N; an empty one is no label.
        boxes: (N, 4) XYXY in pixels.
        picture: width and height.
        size: of the letters, in pixels.
        scores: N; without them the smallest objects come first, which have the fewest places.
        centred: labels belong into the middle of their boxes.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    ranks = -np.asarray(scores) if scores is not None else np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    wanted = [index for index in np.argsort(ranks, kind="stable").tolist() if texts[index].strip()]
    sizes = sorted({max(MIN_TEXT_SIZE, round(share * size)) for share in SIZES}, reverse=True)
    placed: list[PlacedLabel] = []
    for letters in sizes:
        most_without = MOST_WITHOUT if letters == sizes[-1] else 1  # one is enough for smaller letters
        placed = _lay_out(wanted, texts, corners, picture, letters, centred, most_without)
        if len(placed) == len(wanted):
            break
    return placed


def _lay_out(
    wanted: Sequence[int],
    texts: Sequence[str],
    boxes: NDArray[np.float64],
    picture: Point,
    letters: int,
    centred: bool,
    most_without: int,
) -> list[PlacedLabel]:
    """As many as find places, until `most_without` in a row found none."""
    layout = LabelLayout(*picture, () if centred else boxes, gap=max(1, round(letters / 12)))
    widest = min(picture[0], max(round(_WIDEST * picture[0]), 8 * letters))
    room = MOST_COVERED * picture[0] * picture[1]
    placed: list[PlacedLabel] = []
    without = 0
    for index in wanted:
        text, font = fit_text(texts[index], letters, widest)
        size = label_size(text, font)
        room -= size[0] * size[1]
        if (room < 0 and len(placed) >= FEW) or without == most_without:
            break
        place = layout.place(size, boxes[index].tolist(), centred)
        without = without + 1 if place is None else 0
        if place is not None:
            x, y = place.corner
            placed.append(PlacedLabel(index, text, font, (x, y, x + size[0], y + size[1]), place.leader))
    return placed


def _at_edges(size: Point, box: tuple[float, float, float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) corners at which a label touches its object's edge, and what each costs."""
    (w, h), (x0, y0, x1, y1) = size, box
    slides = np.linspace(0.0, 1.0, 5)
    along = x0 + slides * (x1 - w - x0)  # also to the left, where the label is wider than the object
    down = y0 + slides * (y1 - h - y0)
    rows = [("above", y0 - h), ("below", y1), ("inside", y0), ("inside", y1 - h)]
    columns = [("beside", x1), ("beside", x0 - w)]
    corners = [np.stack([along, np.full(5, y)], axis=1) for _, y in rows]
    corners += [np.stack([np.full(5, x), down], axis=1) for _, x in columns]
    costs = [_TOUCHING[kind] + _SLIDE * slides + 0.05 * number for number, (kind, _) in enumerate(rows + columns)]
    return np.concatenate(corners), np.concatenate(costs)


def _in_the_middle(size: Point, box: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    corner = ((box[0] + box[2] - size[0]) / 2, (box[1] + box[3] - size[1]) / 2)
    return np.asarray([corner]), np.zeros(1)


def _around(size: Point, box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """(N, 2) corners in rings about an object, the nearest first."""
    (w, h), (x0, y0, x1, y1) = size, box
    cells = _cells()
    x = np.where(cells[:, 0] < 0, x0 - w, np.where(cells[:, 0] > 0, x1, (x0 + x1 - w) / 2)) + (
        (cells[:, 0] - np.sign(cells[:, 0])) * w / 2
    )
    y = np.where(cells[:, 1] < 0, y0 - h, np.where(cells[:, 1] > 0, y1, (y0 + y1 - h) / 2)) + (
        (cells[:, 1] - np.sign(cells[:, 1])) * h
    )
    return np.stack([x, y], axis=1)


@functools.cache
def _cells() -> NDArray[np.int64]:
    """(N, 2) steps aside and down from an object, without none, the fewest first, up before down."""
    steps = range(-_RINGS, _RINGS + 1)
    cells = [(dx, dy) for dy in steps for dx in steps if dx or dy]
    return np.asarray(sorted(cells, key=lambda cell: max(map(abs, cell))))


def _shared(corners: NDArray[np.float64], size: Point, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) pixels that labels of one size at N corners share with M boxes."""
    low = np.maximum(corners[:, None], boxes[None, :, :2])
    high = np.minimum(corners[:, None] + size, boxes[None, :, 2:])
    shared: NDArray[np.float64] = (high - low).clip(0).prod(axis=2)
    return shared


def _about(corners: NDArray[np.float64], size: Point, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The boxes that some label may touch: of hundreds in a picture a few."""
    if not len(corners):
        return boxes[:0]
    low, high = corners.min(axis=0), corners.max(axis=0) + size
    return boxes[((boxes[:, 2:] > low) & (boxes[:, :2] < high)).all(axis=1)]


def _gap_between(corners: NDArray[np.float64], size: Point, box: Sequence[float]) -> NDArray[np.float64]:
    """(N,) the larger of the horizontal and the vertical gap between a label and its object."""
    corner, end = np.asarray(box[:2]), np.asarray(box[2:])
    gaps: NDArray[np.float64] = np.maximum(corners - end, corner - (corners + size)).clip(0).max(axis=1)
    return gaps


def _nearest(low: float, high: float, other_low: float, other_high: float) -> tuple[float, float]:
    """The nearest points of two intervals; where they overlap, the middle of what they share."""
    if low > other_high:
        return low, other_high
    if high < other_low:
        return high, other_low
    middle = (max(low, other_low) + min(high, other_high)) / 2
    return middle, middle
