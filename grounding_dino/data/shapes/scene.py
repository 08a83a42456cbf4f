"""Composition of a picture: which objects, where, in which order, and what of each stays visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grounding_dino.data.shapes import painter
from grounding_dino.data.shapes.outlines import MAX_ROTATION, place_outline
from grounding_dino.data.shapes.vocabulary import COLORS

import numpy as np
import numpy.typing as npt

MIN_OBJECTS, MAX_OBJECTS = 3, 8
MIN_SIDE, MAX_SIDE = 0.125, 0.36  # larger extent of an object before rotation, relative to the picture
MIN_VISIBLE = 0.7  # share of an object's pixels that later objects leave visible
MIN_CONTRAST = 75.0  # Euclidean RGB distance of an object's colour from what it is painted on
OVERLAP_PROBABILITY = 0.4
PLACEMENT_TRIES = 30


@dataclass(frozen=True)
class SceneObject:
    """One object of a picture.

    `mask` (H, W) bool is its visible part; `size` is the square root of its whole area in pixels, hidden part included.
    """

    pair: tuple[str, str]
    texture: str
    size: float
    mask: npt.NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width, height of the visible part in pixels."""
        columns, rows = np.flatnonzero(self.mask.any(axis=0)), np.flatnonzero(self.mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8 RGB and its objects, furthest back first."""

    image: npt.NDArray[np.uint8]
    objects: list[SceneObject]


class _Composer:
    """Places objects on a canvas, each only where enough of the earlier ones stays visible."""

    def __init__(self, canvas: painter.Canvas, rng: np.random.Generator) -> None:
        self.canvas = canvas
        self.rng = rng
        self.size = canvas.shape[0]
        self.owner = np.zeros(canvas.shape[:2], dtype=np.uint8)  # 1 + index of the object that a pixel shows
        self.whole: list[int] = []  # pixels of each object
        self.visible: list[int] = []
        self.placed: list[tuple[tuple[str, str], str]] = []

    def place(self, pair: tuple[str, str]) -> bool:
        """Try to place one object; False where no try found room and contrast."""
        rng = self.rng
        color = _vary(np.array(COLORS[pair[0]], dtype=np.float32), rng)
        texture = painter.TEXTURES[rng.choice(len(painter.TEXTURES), p=[0.4, 0.2, 0.15, 0.25])]
        may_overlap = rng.random() < OVERLAP_PROBABILITY
        side = self.size * MIN_SIDE * (MAX_SIDE / MIN_SIDE) ** rng.random()
        degrees = rng.uniform(-1, 1) * MAX_ROTATION[pair[1]]
        coverage = painter.rasterize(place_outline(pair[1], side, float(np.exp(rng.uniform(-0.12, 0.12))), degrees))
        inside = coverage >= 128
        height, width = coverage.shape
        for _ in range(PLACEMENT_TRIES):
            x, y = (int(rng.integers(0, max(1, self.size - extent + 1))) for extent in (width, height))
            window = (slice(y, y + height), slice(x, x + width))
            if self._fits(window, inside, pair[0], color, may_overlap):
                self._paint(window, coverage, texture, color)
                self._record(window, inside, pair, texture)
                return True
        return False

    def _fits(
        self, window: tuple[slice, slice], inside: npt.NDArray[np.bool_], name: str, color: painter.Color, overlap: bool
    ) -> bool:
        covered = np.bincount(self.owner[window][inside], minlength=len(self.whole) + 1)[1:]
        for index in np.flatnonzero(covered):
            # Two overlapping objects of one colour would melt into one.
            if not overlap or self.placed[index][0][0] == name:
                return False
            if self.visible[index] - covered[index] < MIN_VISIBLE * self.whole[index]:
                return False
        beneath = self.canvas[window][inside].mean(axis=0)
        return float(np.linalg.norm(beneath - color)) >= MIN_CONTRAST

    def _paint(
        self, window: tuple[slice, slice], coverage: npt.NDArray[np.uint8], texture: str, color: painter.Color
    ) -> None:
        patch = self.canvas[window]
        height, width = coverage.shape
        alpha = coverage.astype(np.float32)[..., None] / 255
        patch += alpha * (painter.texture_patch(texture, color, height, width, self.rng) - patch)

    def _record(
        self, window: tuple[slice, slice], inside: npt.NDArray[np.bool_], pair: tuple[str, str], texture: str
    ) -> None:
        owner = self.owner[window]
        for index, covered in enumerate(np.bincount(owner[inside], minlength=len(self.whole) + 1)[1:]):
            self.visible[index] -= int(covered)
        self.placed.append((pair, texture))
        owner[inside] = len(self.placed)
        pixels = int(inside.sum())
        self.whole.append(pixels)
        self.visible.append(pixels)

    def objects(self) -> list[SceneObject]:
        return [
            SceneObject(pair, texture, float(np.sqrt(self.whole[index])), self.owner == index + 1)
            for index, (pair, texture) in enumerate(self.placed)
        ]


def _vary(color: painter.Color, rng: np.random.Generator) -> painter.Color:
    varied = color * np.float32(rng.uniform(0.9, 1.06)) + rng.uniform(-10, 10, 3).astype(np.float32)
    return np.clip(varied, 0, 255)


def _choose_pair(
    pairs: Sequence[tuple[str, str]], earlier: list[tuple[str, str]], rng: np.random.Generator
) -> tuple[str, str]:
    """Any pair, or one that repeats or resembles an earlier object: look-alikes make words necessary."""
    chance = rng.random()
    if earlier and chance < 0.5:
        model = earlier[rng.integers(len(earlier))]
        if chance < 0.2:
            return model
        part = 0 if chance < 0.35 else 1
        pairs = [pair for pair in pairs if pair[part] == model[part]]
    return pairs[int(rng.integers(len(pairs)))]


def render_scene(pairs: Sequence[tuple[str, str]], size: int, rng: np.random.Generator) -> Scene:
    """A picture of 3 to 8 objects out of `pairs` of (colour, shape); everything follows from `rng`.

    Raises:
        ValueError: no pairs, or `size` below 64 pixels, where shapes cannot be told apart.
    """
    if not pairs:
        raise ValueError("a scene needs at least one (colour, shape) pair to draw")
    if size < 64:
        raise ValueError(f"a picture of {size} pixels is too small for shapes to be told apart; use at least 64")
    canvas = painter.paint_background(size, rng)
    painter.paint_clutter(canvas, int(rng.integers(0, 10)), rng)
    composer = _Composer(canvas, rng)
    wanted = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    for _ in range(4 * wanted):
        if len(composer.placed) == wanted:
            break
        composer.place(_choose_pair(pairs, [pair for pair, _ in composer.placed], rng))
    for _ in range(int(rng.integers(0, 3))):  # scratches over everything; too thin to count as occlusion
        painter.paint_line(canvas, tuple(float(channel) for channel in painter.muted_color(rng)), rng)
    return Scene(painter.finish(canvas, rng), composer.objects())
