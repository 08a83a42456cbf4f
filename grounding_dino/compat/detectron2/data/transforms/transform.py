"""Transforms beyond fvcore's: resizing with PIL, and cropping and padding that need no geometry library.

fvcore's own `CropTransform` clips polygons with shapely; a crop window is a rectangle, so four half-plane cuts do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import Transform
from PIL import Image

# PIL's numbers, as plain integers: 0, 2, 3
NEAREST, BILINEAR, BICUBIC = (int(getattr(Image.Resampling, name)) for name in ("NEAREST", "BILINEAR", "BICUBIC"))
_TORCH_INTERPOLATION = {NEAREST: "nearest", BILINEAR: "bilinear", BICUBIC: "bicubic"}


def clip_polygon_to_box(polygon: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Cut a polygon (N, 2) to the box (x0, y0, x1, y1) with Sutherland and Hodgman's half-plane cuts (1974).

    A concave polygon that leaves and re-enters the box stays one polygon, joined along the border: its area and its
    raster are those of the parts. Returns (M, 2) float64, with M = 0 where nothing is left.
    """
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    x0, y0, x1, y1 = box
    for axis, limit, sign in ((0, x0, 1.0), (0, x1, -1.0), (1, y0, 1.0), (1, y1, -1.0)):
        if len(points) == 0:
            break
        distance = sign * (points[:, axis] - limit)  # (N,), >= 0 is inside
        kept: list[np.ndarray] = []
        for i in range(len(points)):
            j = (i + 1) % len(points)
            if distance[i] >= 0:
                kept.append(points[i])
            if (distance[i] >= 0) != (distance[j] >= 0):
                kept.append(points[i] + (points[j] - points[i]) * (distance[i] / (distance[i] - distance[j])))
        points = np.asarray(kept, dtype=np.float64).reshape(-1, 2)
    if len(points) < 3:
        return points[:0]
    x, y = points[:, 0], points[:, 1]
    double_area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    return points if double_area > 0 else points[:0]


class CropTransform(Transform):
    """Cut out `img[y0:y0+h, x0:x0+w]`; `orig_w`, `orig_h` (the size before) make it invertible."""

    def __init__(self, x0: int, y0: int, w: int, h: int, orig_w: int | None = None, orig_h: int | None = None) -> None:
        super().__init__()
        self.x0, self.y0, self.w, self.h = x0, y0, w, h
        self.orig_w, self.orig_h = orig_w, orig_h

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Crop an array of shape (H, W), (H, W, C) or (N, H, W, C)."""
        rows, columns = slice(self.y0, self.y0 + self.h), slice(self.x0, self.x0 + self.w)
        return img[rows, columns] if img.ndim <= 3 else img[..., rows, columns, :]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Shift (N, 2) points; points outside the window keep their (negative or large) coordinates."""
        coords[:, 0] -= self.x0
        coords[:, 1] -= self.y0
        return coords

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Clip polygons to the window and shift them; those that fall outside are dropped."""
        window = (self.x0, self.y0, self.x0 + self.w, self.y0 + self.h)
        clipped = [clip_polygon_to_box(polygon, window) for polygon in polygons]
        return [self.apply_coords(polygon) for polygon in clipped if len(polygon)]

    def inverse(self) -> Transform:
        """The padding that puts the window back where it was.

        Raises:
            ValueError: the transform was built without `orig_w` and `orig_h`.
        """
        if self.orig_w is None or self.orig_h is None:
            raise ValueError("CropTransform can be inverted only if it is built with orig_w and orig_h.")
        right, bottom = self.orig_w - self.x0 - self.w, self.orig_h - self.y0 - self.h
        return PadTransform(self.x0, self.y0, right, bottom, orig_w=self.w, orig_h=self.h)


class PadTransform(Transform):
    """Add `x0`, `y0` pixels left and above and `x1`, `y1` right and below; `orig_*` make it invertible."""

    def __init__(
        self,
        x0: int,
        y0: int,
        x1: int,
        y1: int,
        orig_w: int | None = None,
        orig_h: int | None = None,
        pad_value: float = 0,
        seg_pad_value: int = 0,
    ) -> None:
        super().__init__()
        self.x0, self.y0, self.x1, self.y1 = x0, y0, x1, y1
        self.orig_w, self.orig_h = orig_w, orig_h
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def _pad(self, img: np.ndarray, value: float) -> np.ndarray:
        widths = ((self.y0, self.y1), (self.x0, self.x1), (0, 0))
        return np.pad(img, widths[: img.ndim], mode="constant", constant_values=value)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Pad an array of shape (H, W) or (H, W, C) with `pad_value`."""
        return self._pad(img, self.pad_value)

    def apply_segmentation(self, img: np.ndarray) -> np.ndarray:
        """Pad a label map with `seg_pad_value`."""
        return self._pad(img, self.seg_pad_value)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Shift (N, 2) points."""
        coords[:, 0] += self.x0
        coords[:, 1] += self.y0
        return coords

    def inverse(self) -> Transform:
        """The crop that takes the padding off again.

        Raises:
            ValueError: the transform was built without `orig_w` and `orig_h`.
        """
        if self.orig_w is None or self.orig_h is None:
            raise ValueError("PadTransform can be inverted only if it is built with orig_w and orig_h.")
        width, height = self.orig_w + self.x0 + self.x1, self.orig_h + self.y0 + self.y1
        return CropTransform(self.x0, self.y0, self.orig_w, self.orig_h, orig_w=width, orig_h=height)


class ResizeTransform(Transform):
    """Resize from (h, w) to (new_h, new_w); `interp` is a PIL method, bilinear when None.

    uint8 pictures go through PIL (antialiased, as published models were trained), others through PyTorch.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W) or (H, W, C); dtype and number of dimensions stay.

        Raises:
            ValueError: the picture is not of the size this transform was made for.
        """
        if img.shape[:2] != (self.h, self.w) or img.ndim > 4:
            raise ValueError(f"ResizeTransform was made for {(self.h, self.w)} pictures, but got {img.shape}.")
        method = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return self._resize_uint8(img, method)
        return self._resize_other(img, method)

    def _resize_uint8(self, img: np.ndarray, method: int) -> np.ndarray:
        single_channel = img.ndim == 3 and img.shape[2] == 1
        picture = Image.fromarray(np.ascontiguousarray(img[:, :, 0] if single_channel else img))
        resized = np.asarray(picture.resize((self.new_w, self.new_h), Image.Resampling(method)))
        return resized[:, :, None] if single_channel else resized

    def _resize_other(self, img: np.ndarray, method: int) -> np.ndarray:
        if int(method) not in _TORCH_INTERPOLATION:
            raise ValueError(f"interpolation {method!r} is only available for uint8 pictures, not for {img.dtype}.")
        mode = _TORCH_INTERPOLATION[int(method)]
        channels_last = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        as_float = channels_last.is_floating_point()
        batch = channels_last.permute(2, 0, 1)[None].to(channels_last.dtype if as_float else torch.float64)
        align = None if mode == "nearest" else False
        resized = F.interpolate(batch, (self.new_h, self.new_w), mode=mode, align_corners=align)[0]
        shape = (self.new_h, self.new_w, *img.shape[2:])
        return resized.permute(1, 2, 0).reshape(shape).numpy().astype(img.dtype)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) points."""
        # A new array: written in place, the results would be cut to whole pixels where the input is of integers.
        return coords * np.array([self.new_w / self.w, self.new_h / self.h])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a label map with nearest neighbours, so that no new labels appear."""
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> ResizeTransform:
        """Resize back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


def _refuse_rotated_boxes(transform: Transform, rotated_boxes: Any) -> Any:
    raise NotImplementedError("Rotated boxes need an installed upstream Detectron2; this implementation has none.")


ResizeTransform.register_type("rotated_box", _refuse_rotated_boxes)
