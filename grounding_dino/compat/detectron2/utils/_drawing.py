"""Drawing primitives behind the visualizers: colours, fonts, label boxes, and where to put them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

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
# Tried in this order; the first that has all glyphs of a text is taken. Pillow ships no file with wide coverage.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "seguiemj.ttf",
)
MIN_FONT_PIXELS = 9
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


def to_uint8(color: Color) -> tuple[int, int, int]:
    """RGB floats in [0, 1] -> integers in 0..255."""
    r, g, b = (round(255 * c) for c in color)
    return r, g, b


def contrasting(color: Color) -> Color:
    """Black or white, whichever reads better on `color` (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0.0, 0.0, 0.0) if luminance > 0.179 else (1.0, 1.0, 1.0)


def lighten(color: Color, lowest: float = 0.6) -> Color:
    """The colour moved towards white until its lightness is at least `lowest`: text on a dark ground."""
    lightness = (max(color) + min(color)) / 2
    share = max(0.0, (lowest - lightness) / (1.0 - lightness)) if lightness < 1.0 else 0.0
    r, g, b = (c + (1.0 - c) * share for c in color)
    return r, g, b


@functools.lru_cache(maxsize=256)
def _load_font(name: str, size: int) -> Any:
    """A font by file name at a pixel size; None where this machine lacks it. "" is Pillow's own."""
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _has_glyph(name: str, character: str) -> bool:
    font = _load_font(name, 16)
    missing = font.getmask("\uffff")  # a non-character: every font draws its placeholder
    glyph = font.getmask(character)
    return glyph.size != missing.size or bytes(glyph) != bytes(missing)


def find_font(text: str, size: int) -> Any:
    """A font of `size` pixels that can draw all of `text`, else the one that comes first on this machine."""
    available = [name for name in (*_FONTS, "") if _load_font(name, 16) is not None]
    for name in available:
        if all(c.isspace() or _has_glyph(name, c) for c in set(text)):
            return _load_font(name, size)
    return _load_font(available[0], size)


def measure(text: str, font: Any, padding: int) -> tuple[int, int]:
    """Width and height in pixels of a label box; the height is the same for all texts of a font."""
    ascent, descent = font.getmetrics()
    return int(np.ceil(font.getlength(text))) + 2 * padding, ascent + descent + padding


def fit_text(text: str, size: int, width: int, padding: int) -> tuple[str, Any]:
    """Make a one-line text fit into `width` pixels: first by a smaller font, then by cutting it with "…"."""
    text = " ".join(text.split())
    font = find_font(text, size)
    needed = measure(text, font, padding)[0]
    if needed > width and size > MIN_FONT_PIXELS:
        font = find_font(text, max(MIN_FONT_PIXELS, int(size * width / needed)))
    kept = len(text)
    while kept > 1 and measure(text, font, padding)[0] > width:
        kept -= 1
        text = text[:kept].rstrip() + "…"
    return text, font


def paint_label(
    canvas: Canvas,
    text: str,
    corner: tuple[int, int],
    font: Any,
    padding: int,
    colors: tuple[Color, Color],
    alpha: float = 0.85,
) -> None:
    """Paint a filled label box with its top-left at `corner`; `colors` are those of the text and of the box."""
    width, height = measure(text, font, padding)
    label = Image.new("RGB", (width, height), to_uint8(colors[1]))
    box = np.asarray(label, dtype=np.uint8)
    ImageDraw.Draw(label).text((padding, padding // 2), text, fill=to_uint8(colors[0]), font=font)
    inked = np.asarray(label, dtype=np.uint8)
    ink = np.abs(inked.astype(np.int16) - box).max(axis=2, keepdims=True) > 0  # text itself is opaque
    paste(canvas, inked, corner, np.where(ink, 1.0, alpha))


def paste(canvas: Canvas, patch: Canvas, corner: tuple[int, int], alpha: NDArray[np.float64]) -> None:
    """Blend a patch (h, w, 3) into the canvas at (x, y), cut at the picture's border; alpha is (h, w, 1)."""
    x, y = corner
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + patch.shape[1], canvas.shape[1]), min(y + patch.shape[0], canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    target = canvas[y0:y1, x0:x1]
    a = alpha[inside]
    canvas[y0:y1, x0:x1] = np.rint(a * patch[inside] + (1.0 - a) * target).astype(np.uint8)


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


class LabelLayout:
    """Finds places for label boxes: inside the picture, near their object, and apart from one another."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._taken: list[tuple[int, int, int, int]] = []  # x0 y0 x1 y1

    def place(self, size: tuple[int, int], box: Sequence[float]) -> tuple[int, int]:
        """Choose, remember and return the top-left corner for a label of `size` (w, h) at an object's box."""
        candidates = self._candidates(size, box)
        cost = self._overlap(candidates, size)
        x, y = candidates[int(cost.argmin())]  # the first without overlap, else the least
        self._taken.append((int(x), int(y), int(x) + size[0], int(y) + size[1]))
        return int(x), int(y)

    def _candidates(self, size: tuple[int, int], box: Sequence[float]) -> NDArray[np.int64]:
        """(N, 2) corners inside the picture, the most wanted first."""
        w, h = size
        x0, y0, x1, y1 = (float(v) for v in box)
        wanted = [
            (x0, y0 - h),  # above, left
            (x0, y0),  # inside, top left
            (x1 - w, y0 - h),  # above, right
            (x0, y1),  # below
            (x1 - w, y1 - h),  # inside, bottom right
            (x0, y1 - h),
            (x1 - w, y1),
            (x1, y0),  # beside
            (x0 - w, y0),
        ]
        wanted += [(x0 + dx * w / 2, y0 + dy * h) for r in range(1, 7) for dx, dy in _ring(r)]
        limits = (max(self.width - w, 0), max(self.height - h, 0))
        return np.clip(np.rint(wanted), 0, limits).astype(np.int64)

    def _overlap(self, corners: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
        """(N,) area that a label at each corner would share with labels placed before."""
        if not self._taken:
            return np.zeros(len(corners), dtype=np.int64)
        taken = np.asarray(self._taken, dtype=np.int64)
        low = np.maximum(corners[:, None], taken[None, :, :2])
        high = np.minimum(corners[:, None] + np.asarray(size), taken[None, :, 2:])
        return (high - low).clip(0).prod(axis=2).sum(axis=1)


@functools.lru_cache(maxsize=16)
def _ring(radius: int) -> tuple[tuple[int, int], ...]:
    """Grid offsets at Chebyshev distance `radius`, above before below."""
    cells = [(dx, dy) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]
    return tuple((dx, dy) for dx, dy in cells if max(abs(dx), abs(dy)) == radius)
