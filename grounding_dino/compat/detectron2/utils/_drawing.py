"""Drawing primitives behind the visualizers: named colours, masks, lines of any style."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

Canvas = NDArray[np.uint8]  # (H, W, 3) RGB
Color = tuple[float, float, float]  # RGB in [0, 1]

# Matplotlib's one-letter names, which Detectron2's interface takes.
_LETTERS = {
    "b": (0.0, 0.0, 1.0),
    "g": (0.0, 0.5, 0.0),
    "r": (1.0, 0.0, 0.0),
    "c": (0.0, 0.75, 0.75),
    "m": (0.75, 0.0, 0.75),
    "y": (0.75, 0.75, 0.0),
    "k": (0.0, 0.0, 0.0),
    "w": (1.0, 1.0, 1.0),
}
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def parse_color(color: Any) -> Color:
    """A name, matplotlib letter, "#rrggbb", or 3 or 4 floats in [0, 1] -> RGB floats in [0, 1].

    Raises:
        ValueError: for anything else.
    """
    if isinstance(color, str):
        if color in _LETTERS:
            return _LETTERS[color]
        r, g, b = ImageColor.getrgb(color)[:3]
        return r / 255.0, g / 255.0, b / 255.0
    values = [float(c) for c in color]
    if len(values) not in (3, 4) or not all(0.0 <= v <= 1.0 for v in values):
        raise ValueError(f"a colour is a name or 3 or 4 numbers in [0, 1], got {color!r}")
    return values[0], values[1], values[2]


def as_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of 0..255 in any type as bytes; bytes as they are, without a copy."""
    return image if image.dtype == np.uint8 else image.clip(0, 255).astype(np.uint8)


def lighten(color: Color, lowest: float = 0.6) -> Color:
    """The colour moved towards white until its lightness is at least `lowest`: text on a dark ground."""
    lightness = (max(color) + min(color)) / 2
    share = max(0.0, (lowest - lightness) / (1.0 - lightness)) if lightness < 1.0 else 0.0
    r, g, b = (c + (1.0 - c) * share for c in color)
    return r, g, b


def fill_mask(canvas: Canvas, mask: NDArray[Any], color: Color, alpha: float) -> None:
    """Blend a colour into the canvas where `mask` (H, W) is set; a float mask in [0, 1] weighs alpha."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[window]
    chosen = inside != 0
    _blend(canvas[window], chosen, inside[chosen].astype(np.float32) * alpha, color)


def _blend(canvas: Canvas, chosen: NDArray[np.bool_], weights: NDArray[np.floating[Any]], color: Color) -> None:
    """Blend a colour into the N chosen pixels of the canvas, with their weights (N,) in [0, 1]."""
    weight, ink = weights[:, None], 255.0 * np.asarray(color, dtype=np.float32)
    pixels = np.divmod(np.flatnonzero(chosen), chosen.shape[1])  # faster than a mask for a few of many
    canvas[pixels] = np.rint(weight * ink + (1 - weight) * canvas[pixels]).astype(np.uint8)


def draw_lines(
    canvas: Canvas,
    points: NDArray[Any],
    color: Color,
    thickness: int,
    alpha: float = 1.0,
    dashed: bool = False,
) -> None:
    """Draw a poly-line through (N, 2) points in continuous coordinates (pixel i covers [i, i + 1])."""
    margin = thickness + 2
    low = np.floor(points.min(axis=0)).astype(int) - margin
    high = np.ceil(points.max(axis=0)).astype(int) + margin
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(high, (canvas.shape[1], canvas.shape[0]))
    if x0 >= x1 or y0 >= y1:
        return
    ink = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    fixed = np.rint((points - (x0 + 0.5, y0 + 0.5)) * (1 << _SHIFT)).astype(np.int32)
    for line in _dashes(fixed, 4 * thickness << _SHIFT) if dashed else [fixed]:
        cv2.polylines(ink, [line.reshape(-1, 1, 2)], False, 255, thickness, cv2.LINE_AA, _SHIFT)
    chosen = ink != 0  # few of a box's pixels are its outline
    _blend(canvas[y0:y1, x0:x1], chosen, ink[chosen] / np.float32(255.0) * alpha, color)


def _dashes(points: NDArray[np.int32], length: int) -> list[NDArray[np.int32]]:
    """Cut a poly-line into dashes of about `length`, every second one left out."""
    dashes = []
    for start, end in zip(points[:-1], points[1:]):
        count = max(1, int(np.linalg.norm(end - start)) // length) | 1  # odd: corners are always inked
        cuts = start + (end - start) * (np.arange(count + 1) / count)[:, None]
        dashes += [np.rint(cuts[i : i + 2]).astype(np.int32) for i in range(0, count, 2)]
    return dashes
