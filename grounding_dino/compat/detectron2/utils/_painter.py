"""The canvas of a visualizer, and the single things one can draw on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.drawing.canvas import paint_plate
from grounding_dino.drawing.labels import LabelLayout
from grounding_dino.drawing.text import MIN_TEXT_SIZE, fit_text, label_size

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _drawing
from ._masks import GenericMask
from .colormap import colormap

PIXELS_PER_POINT = 100 / 72  # font sizes are in points of a 100 dpi figure
_DARK = (0.0, 0.0, 0.0)


class VisImage:
    """A picture (H, W, 3) RGB being drawn on, enlarged by `scale`.

    `width` and `height` are those of the given picture, in whose coordinates everything is drawn; `canvas` is
    the enlarged result.
    """

    def __init__(self, img: NDArray[Any], scale: float = 1.0) -> None:
        self.scale = scale
        self.reset_image(img)

    def reset_image(self, img: NDArray[Any]) -> None:
        """Start anew from a picture (H, W, 3) RGB."""
        self.img = img
        self.height, self.width = img.shape[:2]
        canvas = np.ascontiguousarray(_drawing.as_uint8(np.asarray(img)))
        if self.scale != 1.0:
            size = (max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale)))
            interpolation = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
            canvas = np.asarray(cv2.resize(canvas, size, interpolation=interpolation), dtype=np.uint8)
        self.canvas: NDArray[np.uint8] = canvas.copy() if np.may_share_memory(canvas, img) else canvas

    def get_image(self) -> NDArray[np.uint8]:
        """The drawn picture, (H * scale, W * scale, 3) RGB uint8."""
        return self.canvas

    def save(self, filepath: str) -> None:
        """Write the drawn picture; the file name's ending decides the format."""
        Image.fromarray(self.canvas).save(filepath)


class Painter:
    """Draws single things on one RGB picture; every method returns the `VisImage` it drew on."""

    def __init__(self, img_rgb: NDArray[Any], scale: float, font_size_scale: float) -> None:
        self.img = _drawing.as_uint8(np.asarray(img_rgb))
        if self.img.ndim == 2:
            self.img = np.repeat(self.img[..., None], 3, axis=2)
        self.output = VisImage(self.img, scale=scale)
        height, width = self.img.shape[:2]
        self._default_font_size = max(np.sqrt(height * width) / 90, 10 / scale) * font_size_scale
        self._layout = LabelLayout(*self.output.canvas.shape[1::-1])

    def draw_text(
        self,
        text: str,
        position: tuple[float, float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: int = 0,
    ) -> VisImage:
        """Write text on a dark box; `position` is the top of the text, at its centre, left or right end."""
        if rotation:
            raise NotImplementedError("rotated text is not supported: install upstream Detectron2 for it")
        shares = {"left": 0.0, "center": 0.5, "right": 1.0}
        if horizontal_alignment not in shares:
            raise ValueError(f"unknown horizontal_alignment {horizontal_alignment!r}; choose from {sorted(shares)}")
        if not text.strip():
            return self.output
        fitted, font = self._fit(text, font_size)
        width, height = label_size(fitted, font)
        canvas_height, canvas_width = self.output.canvas.shape[:2]
        x = position[0] * self.output.scale - shares[horizontal_alignment] * width
        corner = _clamp(x, canvas_width - width), _clamp(position[1] * self.output.scale, canvas_height - height)
        ink = _drawing.lighten(_drawing.parse_color(color))
        paint_plate(self.output.canvas, fitted, corner, font, _DARK, ink)
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of an XYXY box."""
        x0, y0, x1, y1 = (float(v) for v in box_coord)
        corners = np.asarray([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        self._paint_line(corners, edge_color, self._line_width(), alpha, line_style)
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through the points (x, y)."""
        width = self._line_width() if linewidth is None else linewidth
        self._paint_line(np.stack([x_data, y_data], axis=1).astype(np.float64), color, width, 1.0, linestyle)
        return self.output

    def draw_circle(self, circle_coord: tuple[float, float], color: Any, radius: int = 3) -> VisImage:
        """Draw a filled disc."""
        angles = np.linspace(0.0, 2 * np.pi, 32, endpoint=False)
        outline = np.asarray(circle_coord) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return self.draw_polygon(outline, color, alpha=1.0)

    def draw_polygon(self, segment: Any, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon of points (N, 2) in pixels, and its outline in `edge_color`."""
        points = np.asarray(segment, dtype=np.float64).reshape(-1, 2)
        mask = np.zeros(self.output.canvas.shape[:2], dtype=np.uint8)
        cv2.fillPoly(mask, [np.rint(points * self.output.scale - 0.5).astype(np.int32)], 1)
        _drawing.fill_mask(self.output.canvas, mask, _drawing.parse_color(color), alpha)
        if edge_color is not None:
            self._paint_line(np.concatenate([points, points[:1]]), edge_color, self._line_width() / 2, 1.0, "-")
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: NDArray[Any],
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float = 10,
    ) -> VisImage:
        """Draw a mask (H, W) of 0/1; a mask smaller than `area_threshold` pixels is left out."""
        mask = GenericMask(np.asarray(binary_mask), self.output.height, self.output.width)
        if mask.area() < max(area_threshold, 1):
            return self.output
        fill = _drawing.parse_color(colormap(rgb=True, maximum=1)[0] if color is None else color)
        self._paint_mask(mask, fill, alpha, None if edge_color is None else _drawing.parse_color(edge_color))
        if text:
            self._label(text, _centre_of(mask.mask), fill)
        return self.output

    def draw_soft_mask(
        self, soft_mask: NDArray[Any], color: Any = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a mask (H, W) of weights in [0, 1]."""
        weights = np.asarray(soft_mask, dtype=np.float32)
        fill = _drawing.parse_color(colormap(rgb=True, maximum=1)[0] if color is None else color)
        _drawing.fill_mask(self.output.canvas, self._enlarge(weights, cv2.INTER_LINEAR), fill, alpha)
        if text:
            self._label(text, _centre_of(weights > 0.5), fill)
        return self.output

    def get_output(self) -> VisImage:
        """The picture as drawn so far."""
        return self.output

    # Helpers, in canvas pixels

    def _line_width(self) -> float:
        return max(self._default_font_size / 4, 1.0)

    def _paint_line(self, points: NDArray[Any], color: Any, width: float, alpha: float, style: str) -> None:
        scale = self.output.scale
        _drawing.draw_lines(
            self.output.canvas,
            points * scale,
            _drawing.parse_color(color),
            max(1, round(width * scale)),
            alpha,
            dashed=style not in ("-", "solid"),
        )

    def _paint_mask(self, mask: GenericMask, color: _drawing.Color, alpha: float, edge: _drawing.Color | None) -> None:
        _drawing.fill_mask(self.output.canvas, self._enlarge(mask.mask, cv2.INTER_NEAREST), color, alpha)
        for outline in mask.polygons if edge is not None else ():
            points = outline.reshape(-1, 2)
            self._paint_line(np.concatenate([points, points[:1]]), edge, self._line_width() / 2, 1.0, "-")

    def _enlarge(self, mask: NDArray[Any], interpolation: int) -> NDArray[Any]:
        """Bring a mask from the picture's size to the canvas's."""
        height, width = self.output.canvas.shape[:2]
        if mask.shape == (height, width):
            return mask
        return np.asarray(cv2.resize(mask, (width, height), interpolation=interpolation))

    def _fit(self, text: str, font_size: float | None) -> tuple[str, Any]:
        """The text cut to the canvas's width, and its font."""
        points = self._default_font_size if font_size is None else font_size
        size = max(MIN_TEXT_SIZE, round(points * PIXELS_PER_POINT * self.output.scale))
        return fit_text(text, size, self.output.canvas.shape[1])

    def _label(self, text: str, box: Any, color: _drawing.Color) -> None:
        """Put a label in the object's colour where it covers no other label."""
        if not text.strip():
            return
        fitted, font = self._fit(text, None)
        scaled = [float(value) * self.output.scale for value in box]
        place = self._layout.place(label_size(fitted, font), scaled, forced=True)
        if place is not None:
            paint_plate(self.output.canvas, fitted, place.corner, font, color)


def _clamp(value: float, highest: int) -> int:
    return max(0, min(round(value), highest))


def _centre_of(mask: NDArray[Any]) -> tuple[float, float, float, float]:
    """The point of a mask farthest from its border, as an empty box: where its label goes."""
    padded = np.pad(mask.astype(np.uint8), 1)  # the picture's edge is a border too
    distance = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3))
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x) - 0.5, float(y) - 0.5, float(x) - 0.5, float(y) - 0.5
