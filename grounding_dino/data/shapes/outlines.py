"""The contour of each shape, as closed polygons in a unit frame.

A contour fills [-1, 1] in its larger extent, x to the right and y down. Several polygons of one shape combine by the
even-odd rule (the ring's hole).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.float64]  # (N, 2) x y


def _ellipse_arc(center: tuple[float, float], radius: float, start: float, stop: float, points: int) -> Polygon:
    angle = np.linspace(np.deg2rad(start), np.deg2rad(stop), points)
    return np.stack([center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle)], axis=1)


def _circle(radius: float = 1.0) -> Polygon:
    return _ellipse_arc((0.0, 0.0), radius, 0.0, 360.0 - 7.5, 48)


def _regular(corners: int) -> Polygon:
    return _ellipse_arc((0.0, 0.0), 1.0, -90.0, 270.0 - 360.0 / corners, corners)


def _star() -> Polygon:
    outer = _regular(5)
    inner = _ellipse_arc((0.0, 0.0), 0.42, -54.0, 270.0 - 36.0, 5)
    return np.stack([outer, inner], axis=1).reshape(-1, 2)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _cross(arm: float = 0.36) -> Polygon:
    corner = [(arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm), (arm, 1.0)]
    return np.array(corner + [(-x, -y) for x, y in corner])


def _crescent() -> Polygon:
    outer = _ellipse_arc((0.0, 0.0), 1.0, 50.0, 310.0, 36)
    tip_x, tip_y = outer[0]
    # The inner arc passes through both tips, around a centre further right.
    center = 0.55
    radius = float(np.hypot(tip_x - center, tip_y))
    angle = float(np.rad2deg(np.arctan2(tip_y, tip_x - center)))
    inner = _ellipse_arc((center, 0.0), radius, 360.0 - angle, angle, 30)
    return np.concatenate([outer, inner[1:-1]])


def _arrow() -> Polygon:
    half = [(-1.0, 0.24), (0.08, 0.24), (0.08, 0.66), (1.0, 0.0)]
    return np.array([*half, *[(x, -y) for x, y in reversed(half[:-1])]])


_OUTLINES: dict[str, Callable[[], list[Polygon]]] = {
    "circle": lambda: [_circle()],
    "square": lambda: [np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])],
    "triangle": lambda: [_regular(3)],
    "star": lambda: [_star()],
    "heart": lambda: [_heart()],
    "cross": lambda: [_cross()],
    "ring": lambda: [_circle(), _circle(0.55)],
    "diamond": lambda: [np.array([(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)])],
    "crescent": lambda: [_crescent()],
    "arrow": lambda: [_arrow()],
}

# Largest rotation either way in degrees: a square turned by 45 would be a diamond, a cross an "x".
MAX_ROTATION: dict[str, float] = {
    "circle": 180.0,
    "square": 20.0,
    "triangle": 180.0,
    "star": 180.0,
    "heart": 35.0,
    "cross": 20.0,
    "ring": 180.0,
    "diamond": 15.0,
    "crescent": 180.0,
    "arrow": 180.0,
}


@cache
def outline(shape: str) -> tuple[Polygon, ...]:
    """The polygons of a shape, centred and scaled so that the larger extent is exactly [-1, 1].

    Raises:
        ValueError: the shape has no contour.
    """
    if shape not in _OUTLINES:
        raise ValueError(f"unknown shape {shape!r}; choose from {sorted(_OUTLINES)}")
    polygons = _OUTLINES[shape]()
    points = np.concatenate(polygons)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 2.0 / float((high - low).max())
    return tuple((polygon - (low + high) / 2) * scale for polygon in polygons)


def place_outline(shape: str, side: float, aspect: float, degrees: float) -> list[Polygon]:
    """A shape's polygons with its larger extent `side` pixels, stretched by `aspect` (x over y), then rotated.

    The result is shifted so that its bounding box starts at (0, 0).
    """
    radians = np.deg2rad(degrees)
    cosine, sine = np.cos(radians), np.sin(radians)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    stretch = np.array([np.sqrt(aspect), 1.0 / np.sqrt(aspect)]) * side / 2
    polygons = [(polygon * stretch) @ rotation.T for polygon in outline(shape)]
    low = np.concatenate(polygons).min(axis=0)
    return [polygon - low for polygon in polygons]
