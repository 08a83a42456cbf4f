"""Instance masks, as bitmaps or polygons, with the same methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from torch import Tensor

from .boxes import Boxes

__all__ = ["BitMasks", "PolygonMasks", "polygons_to_bitmask"]


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterise the union of polygons [x0, y0, x1, y1, ...] as COCO does: bool (height, width)."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)  # pycocotools refuses an empty list
    rles = mask_utils.frPyObjects([np.asarray(polygon).tolist() for polygon in polygons], height, width)
    return np.asarray(mask_utils.decode(mask_utils.merge(rles))).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> Tensor:
    """Rasterise the part of `polygons` in `box` (4,) XYXY at mask_size x mask_size: bool (mask_size, mask_size)."""
    width, height = box[2] - box[0], box[3] - box[1]
    # A side below a tenth of a pixel would scale the polygon out of any bounds.
    scales = np.array([mask_size / max(width, 0.1), mask_size / max(height, 0.1)])
    moved = [((polygon.reshape(-1, 2) - box[:2]) * scales).reshape(-1) for polygon in polygons]
    return torch.from_numpy(polygons_to_bitmask(moved, mask_size, mask_size))


def _check_boxes(boxes: Tensor, count: int) -> None:
    if len(boxes) != count:
        raise ValueError(f"crop_and_resize got {len(boxes)} boxes for {count} masks; give one each")


class BitMasks:
    """N masks of one picture as a bool tensor (N, H, W)."""

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        """`tensor`: (N, H, W); other dtypes are read as non-zero = inside."""
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.bool)
        else:
            tensor = torch.as_tensor(np.asarray(tensor), dtype=torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"BitMasks takes a tensor of shape (N, H, W), got {tuple(tensor.shape)}")
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """``Tensor.to`` on the masks."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Device of the masks."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        """Select by int (one mask), slice, index or bool tensor."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        selected = self.tensor[item]
        if selected.dim() != 3:
            raise IndexError(f"indexing BitMasks with {item!r} gives shape {tuple(selected.shape)}, not (N, H, W)")
        return BitMasks(selected)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one mask (H, W) after the other."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={tuple(self.image_size)})"

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def nonempty(self) -> Tensor:
        """Bool (N,): masks with at least one pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """Rasterise polygons for a picture of `height` x `width`."""
        polygons = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        masks = [polygons_to_bitmask(parts, height, width) for parts in polygons]
        return BitMasks(torch.from_numpy(np.stack(masks)) if masks else torch.empty(0, height, width, dtype=torch.bool))

    @staticmethod
    def from_roi_masks(roi_masks: Any, height: int, width: int) -> BitMasks:
        """Paste masks that are relative to their boxes (an object with ``to_bitmasks``) into the picture."""
        bitmasks: BitMasks = roi_masks.to_bitmasks(height, width)
        return bitmasks

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Resample each mask within its box (N, 4) XYXY: bool (N, mask_size, mask_size)."""
        _check_boxes(boxes, len(self))
        indices = torch.arange(len(boxes), device=self.device, dtype=boxes.dtype)[:, None]
        rois = torch.cat((indices, boxes.to(self.device)), dim=1)  # (N, 5)
        masks = self.tensor[:, None].to(torch.float32)
        from torchvision.ops import roi_align  # on use: it takes seconds to import

        resized = roi_align(masks, rois.float(), (mask_size, mask_size), 1.0, sampling_ratio=0, aligned=True)
        return resized.squeeze(1) >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes around the masks' pixels; zeros for an empty mask."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32)
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)  # (N, W), (N, H)
        for index in range(len(self)):
            x = torch.where(columns[index])[0]
            y = torch.where(rows[index])[0]
            if len(x) > 0:
                boxes[index] = torch.tensor([x[0], y[0], x[-1] + 1, y[-1] + 1], dtype=torch.float32)
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: list[BitMasks]) -> BitMasks:
        """Concatenate masks of one size."""
        if not bitmasks_list or not all(isinstance(masks, BitMasks) for masks in bitmasks_list):
            raise TypeError("BitMasks.cat takes a list of at least one BitMasks")
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


class PolygonMasks:
    """N masks of one picture, each a list of polygons [x0, y0, x1, y1, ...] in absolute coordinates (float64)."""

    def __init__(self, polygons: list[list[Tensor | np.ndarray]]) -> None:
        """`polygons`: for each object its polygons, as arrays or tensors of an even number (at least 6) of values."""
        if not isinstance(polygons, (list, tuple)):
            raise ValueError(f"PolygonMasks takes a list of lists of polygons, got {type(polygons).__name__}")
        self.polygons: list[list[np.ndarray]] = [self._check(index, parts) for index, parts in enumerate(polygons)]

    @staticmethod
    def _check(index: int, parts: Sequence[Any]) -> list[np.ndarray]:
        if not isinstance(parts, (list, tuple)):
            raise ValueError(f"object {index} of PolygonMasks must be a list of polygons, got {type(parts).__name__}")
        arrays = [
            (part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)).astype(np.float64) for part in parts
        ]
        for array in arrays:
            if array.ndim != 1 or len(array) % 2 != 0 or len(array) < 6:
                raise ValueError(
                    f"object {index} of PolygonMasks has a polygon that is not 3 or more x y pairs: {array}"
                )
        return arrays

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """Itself: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes around the polygons."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32)
        for index, parts in enumerate(self.polygons):
            if parts:
                points = np.concatenate([part.reshape(-1, 2) for part in parts])
                boxes[index] = torch.from_numpy(np.concatenate((points.min(axis=0), points.max(axis=0))))
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """Bool (N,): objects with at least one polygon."""
        return torch.tensor([len(parts) > 0 for parts in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """Select by int (one object), slice, list of ints, index or bool tensor."""
        if isinstance(item, int):
            return PolygonMasks([list(self.polygons[item])])
        if isinstance(item, slice):
            return PolygonMasks([list(parts) for parts in self.polygons[item]])
        if isinstance(item, (Tensor, np.ndarray)):
            indices = torch.as_tensor(item)
            if indices.dim() != 1:
                raise IndexError(f"PolygonMasks is indexed by tensors of one dimension, got {indices.dim()}")
            if indices.dtype in (torch.bool, torch.uint8):
                indices = indices.nonzero().squeeze(1)
            item = indices.tolist()
        if not isinstance(item, list):
            raise IndexError(f"PolygonMasks cannot be indexed by {type(item).__name__}")
        return PolygonMasks([list(self.polygons[index]) for index in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the polygons of one object after the other."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def __len__(self) -> int:
        return len(self.polygons)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Rasterise each object within its box (N, 4) XYXY: bool (N, mask_size, mask_size), on the boxes' device."""
        _check_boxes(boxes, len(self))
        if len(self) == 0:
            return torch.empty(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        corners = boxes.detach().cpu().numpy()
        masks = [rasterize_polygons_within_box(parts, box, mask_size) for parts, box in zip(self.polygons, corners)]
        return torch.stack(masks, dim=0).to(boxes.device)

    def area(self) -> Tensor:
        """Areas (N,) of the polygons, by the shoelace formula; overlaps of an object's polygons count twice."""
        return torch.tensor([sum(_polygon_area(part.reshape(-1, 2)) for part in parts) for parts in self.polygons])

    @staticmethod
    def cat(polymasks_list: list[PolygonMasks]) -> PolygonMasks:
        """Concatenate."""
        if not polymasks_list or not all(isinstance(masks, PolygonMasks) for masks in polymasks_list):
            raise TypeError("PolygonMasks.cat takes a list of at least one PolygonMasks")
        return PolygonMasks([list(parts) for masks in polymasks_list for parts in masks.polygons])


def _polygon_area(points: np.ndarray) -> float:
    """Area within the closed outline `points` (P, 2)."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * float(np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
