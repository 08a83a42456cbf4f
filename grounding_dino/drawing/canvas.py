"""Outlines, masks, lines and labels, painted into a picture (H, W, 3) RGB uint8.

Coordinates are continuous pixels: pixel i covers [i, i + 1]. What lies outside the picture is cut.
"""

from __future__ import annotations

from typing import Any

from grounding_dino.drawing.labels import PlacedLabel, Rectangle
from grounding_dino.drawing.palette import Color, as_bytes, contrasting
from grounding_dino.drawing.text import draw_text

import cv2
import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.uint8]  # (H, W, 3) RGB

CASING = 0.55  # how dark a line's borders are; the palette's colours stand out from them on any ground
_BLACK = (0, 0, 0)


def enlarged(picture: NDArray[np.uint8], scale: float) -> Canvas:
    """A copy of a picture, `scale` times as large, to draw on."""
    if scale == 1.0:
        return np.array(picture, dtype=np.uint8, order="C")
    height, width = picture.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))


def frame_of(box: NDArray[np.floating], width: int, picture: tuple[int, int]) -> Rectangle | None:
    """The rectangle of whole pixels whose border, `width` wide, is drawn for an XYXY box; None outside the picture.

    The border is on the box's edge, or inside of the picture's. A box so small that its lines would hide what is in it
    has them outside.

    Args:
        picture: its width and height.
    """
    x0, x1 = _span(float(box[0]), float(box[2]), width, picture[0])
    y0, y1 = _span(float(box[1]), float(box[3]), width, picture[1])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def outline_box(canvas: Canvas, frame: Rectangle, color: Color, width: int) -> None:
    """Draw the border of a rectangle of :func:`frame_of`, with a dark casing."""
    x0, y0, x1, y1 = frame
    casing = _casing(width)
    _blend_frame(canvas, (x0 - casing, y0 - casing, x1 + casing, y1 + casing), casing, _BLACK, CASING)
    _blend_frame(canvas, (x0 + width, y0 + width, x1 - width, y1 - width), casing, _BLACK, CASING)
    _blend_frame(canvas, frame, width, as_bytes(color), 1.0)


def fill_mask(canvas: Canvas, mask: NDArray[np.uint8], color: Color, alpha: float, outline: int = 0) -> None:
    """Blend a colour into the canvas where `mask` (H, W) is not 0, and draw its outline, `outline` pixels wide."""
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return
    inside = np.ascontiguousarray(mask[y : y + h, x : x + w])
    part = canvas[y : y + h, x : x + w]
    ink = np.empty_like(part)
    ink[:] = as_bytes(color)
    blended = cv2.addWeighted(part, 1 - alpha, ink, alpha, 0)
    part[:] = cv2.copyTo(blended, inside, part)
    if outline:
        lines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        cv2.polylines(canvas, lines, True, as_bytes(color), outline, cv2.LINE_AA)


def fill_segments(canvas: Canvas, segments: NDArray[np.integer], colors: list[Color], alpha: float, edge: int) -> None:
    """Blend the colour of each of N segments into the canvas, and draw white lines, `edge` pixels wide, between them.

    Args:
        segments: (H, W), 1 to N; 0 is no segment.
    """
    table = np.asarray([(0, 0, 0), *map(as_bytes, colors)], dtype=np.uint8)
    blended = cv2.addWeighted(canvas, 1 - alpha, table[segments], alpha, 0)
    canvas[:] = cv2.copyTo(blended, (segments > 0).astype(np.uint8), canvas)
    border = np.zeros(segments.shape, dtype=np.uint8)
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    border[1:] |= segments[1:] != segments[:-1]
    if edge > 1:
        border = np.asarray(cv2.dilate(border, np.ones((edge, edge), dtype=np.uint8)))
    canvas[border != 0] = 255


def paint_labels(canvas: Canvas, labels: list[PlacedLabel], colors: list[Color], width: int) -> None:
    """Paint labels on plates of their objects' colours, and the lines of those that need one, `width` pixels wide."""
    for label in labels:
        if label.leader:
            start, end = label.leader
            for thickness, color in _cased(colors[label.index], width):
                cv2.line(canvas, start, end, color, thickness, cv2.LINE_AA)
            cv2.circle(canvas, end, width + 1, as_bytes(colors[label.index]), -1, cv2.LINE_AA)
    for label in labels:
        paint_plate(canvas, label.text, label.rectangle[:2], label.font, colors[label.index])


def paint_plate(
    canvas: Canvas, text: str, corner: tuple[int, int], font: Any, color: Color, ink: Color | None = None
) -> None:
    """Paint a text on a plate, in black or white, whichever reads better, or in the colour `ink`."""
    letters = draw_text(text, font)
    (x, y), (height, width) = corner, letters.shape
    x0, y0 = max(x, 0), max(y, 0)
    target = canvas[y0 : max(y + height, 0), x0 : max(x + width, 0)]
    share = letters[y0 - y :, x0 - x :][: target.shape[0], : target.shape[1], None] / np.float32(255)
    paper, ink_color = (
        255 * np.asarray(c, dtype=np.float32) for c in (color, contrasting(color) if ink is None else ink)
    )
    target[:] = np.rint(paper + (ink_color - paper) * share)


def _span(low: float, high: float, width: int, limit: int) -> tuple[int, int]:
    """First and last pixel (exclusive) of a frame of lines `width` wide on [low, high], moved into [0, limit]."""
    if high < 0 or low > limit:
        return 0, 0
    inner = high - low - width
    apart = 0.0 if inner >= 2 * width else width / 2  # then beside, not on, the edge
    least = 2 * width + max(2, width)
    first, last = round(low - width / 2 - apart), round(high + width / 2 + apart)
    if last - first < least:
        first = round((low + high - least) / 2)
        last = first + least
    return max(first, 0), min(last, limit)


def _blend_frame(canvas: Canvas, frame: Rectangle, width: int, color: Any, alpha: float) -> None:
    """Blend a colour into the four sides of a frame; no pixel twice."""
    x0, y0, x1, y1 = frame
    if x0 >= x1 or y0 >= y1:
        return
    top, bottom = min(y0 + width, y1), max(y1 - width, y0 + width)
    sides = [(x0, y0, x1, top), (x0, bottom, x1, y1)]
    sides += [(x0, top, min(x0 + width, x1), bottom), (max(x1 - width, x0 + width), top, x1, bottom)]
    for left, upper, right, lower in sides:
        part = canvas[max(upper, 0) : max(lower, 0), max(left, 0) : max(right, 0)]
        part[:] = color if alpha == 1.0 else np.rint((1 - alpha) * part + alpha * np.asarray(color, dtype=np.float32))


def _casing(width: int) -> int:
    """Pixels on either side of a line."""
    return max(1, round(width / 4))


def _cased(color: Color, width: int) -> list[tuple[int, tuple[int, int, int]]]:
    """Thickness and colour of the strokes of a line, the lower one first."""
    return [(width + 2 * _casing(width), _BLACK), (width, as_bytes(color))]
