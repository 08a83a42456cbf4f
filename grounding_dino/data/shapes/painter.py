"""Pixels: backgrounds, clutter, textured shapes and sensor noise, on a float32 RGB canvas in [0, 255]."""

from __future__ import annotations

import colorsys

from grounding_dino.data.shapes.outlines import Polygon

import cv2
import numpy as np
import numpy.typing as npt

Canvas = npt.NDArray[np.float32]  # (H, W, 3) RGB
Color = npt.NDArray[np.float32]  # (3,) RGB

BACKGROUNDS = ("plain", "graded", "blotchy")
TEXTURES = ("plain", "striped", "dotted", "gradient")
_FRACTION_BITS = 4  # OpenCV's fixed-point coordinates: 1/16 pixel


def muted_color(rng: np.random.Generator) -> Color:
    """A colour for backgrounds: any hue, low saturation, from dark to light."""
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0, 0.4), rng.uniform(0.15, 0.97)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32) * 255


def draw_background(rng: np.random.Generator) -> tuple[int, Color]:
    """The kind of a background, an index of BACKGROUNDS, and its colour: what a picture's random stream gives first."""
    color = muted_color(rng)
    return int(rng.integers(len(BACKGROUNDS))), color


def paint_background(size: int, rng: np.random.Generator) -> Canvas:
    """A plain, gradient or blotchy background of `size` x `size` pixels."""
    kind, first = draw_background(rng)
    if kind == 0:
        return np.broadcast_to(first, (size, size, 3)).copy()
    # Two ends of moderate distance, so that objects stay visible on all of it.
    second = np.clip(first + rng.uniform(-70, 70, 3), 0, 255).astype(np.float32)
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        blend = ramp[None, :] * np.cos(angle) + ramp[:, None] * np.sin(angle) + 0.5
    else:
        cells = int(rng.integers(3, 14))
        blend = cv2.resize(rng.random((cells, cells), dtype=np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    blend = np.clip(blend, 0, 1).astype(np.float32)[..., None]
    return first + blend * (second - first)


def paint_clutter(canvas: Canvas, count: int, rng: np.random.Generator) -> None:
    """Thin lines and small blobs of any colour, in place; far smaller than any object."""
    size = canvas.shape[0]
    unit = size / 256
    for _ in range(count):
        color = tuple(float(channel) for channel in rng.uniform(0, 255, 3))
        x, y = (int(value) for value in rng.integers(0, size, 2))
        if rng.random() < 0.5:
            paint_line(canvas, color, rng)
        else:
            axes = (max(1, round(rng.uniform(1, 5) * unit)), max(1, round(rng.uniform(1, 5) * unit)))
            cv2.ellipse(canvas, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, color, -1)


def paint_line(canvas: Canvas, color: tuple[float, ...], rng: np.random.Generator) -> None:
    """One thin line of random place and direction, in place."""
    size = canvas.shape[0]
    start = rng.uniform(0, size, 2)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9) * size
    stop = start + length * np.array([np.cos(angle), np.sin(angle)])
    thickness = max(1, round(rng.uniform(0.6, 1.8) * size / 256))
    cv2.line(canvas, tuple(start.astype(int).tolist()), tuple(stop.astype(int).tolist()), color, thickness)


def rasterize(polygons: list[Polygon]) -> npt.NDArray[np.uint8]:
    """Polygons that start at (0, 0) as an anti-aliased coverage patch (h, w) in 0 ... 255, margin one pixel."""
    width, height = np.ceil(np.concatenate(polygons).max(axis=0)).astype(int) + 2
    patch = np.zeros((int(height), int(width)), dtype=np.uint8)
    scale = 1 << _FRACTION_BITS
    # OpenCV puts integer coordinates on pixel centres; ours on pixel corners: hence + 1 (margin) - 0.5.
    points = [np.rint((polygon + 0.5) * scale).astype(np.int32) for polygon in polygons]
    cv2.fillPoly(patch, points, 255, lineType=cv2.LINE_AA, shift=_FRACTION_BITS)
    return patch


def second_tone(color: Color) -> Color:
    """The other tone of a texture: darker for light colours, lighter for dark ones, still the same colour's name."""
    luminance = float(color @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
    return color * 0.7 if luminance > 135 else color + (255 - color) * 0.33


def texture_patch(texture: str, color: Color, height: int, width: int, rng: np.random.Generator) -> Canvas:
    """A (height, width, 3) patch of a textured colour; the named colour always covers most of it.

    Raises:
        ValueError: the texture is unknown.
    """
    if texture == "plain":
        return np.broadcast_to(color, (height, width, 3)).astype(np.float32)
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    along, across = x * cosine + y * sine, y * cosine - x * sine
    period = max(5.0, 0.2 * max(height, width))
    if texture == "striped":
        blend = (along % period < 0.42 * period).astype(np.float32)
    elif texture == "dotted":
        distance = np.hypot(along % period - period / 2, across % period - period / 2)
        blend = (distance < 0.3 * period).astype(np.float32)
    elif texture == "gradient":
        span = float(along.max() - along.min()) or 1.0
        blend = (along - along.min()) / span * 0.8
    else:
        raise ValueError(f"unknown texture {texture!r}; choose from {TEXTURES}")
    return color + blend[..., None].astype(np.float32) * (second_tone(color) - color)


def finish(canvas: Canvas, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Blur and noise of a camera; the picture as uint8 RGB."""
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.3, 0.8))).astype(np.float32, copy=False)
    strength = np.float32(rng.uniform(0, 9) if rng.random() < 0.7 else 0.0)
    if strength > 0:
        canvas = canvas + rng.standard_normal(canvas.shape, dtype=np.float32) * strength
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
