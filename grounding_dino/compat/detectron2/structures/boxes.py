"""Axis-aligned boxes: their storage, formats and overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

BoxLike = TypeVar("BoxLike", list[float], tuple[float, ...], Tensor, np.ndarray)


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are to be read. Relative and rotated formats exist by name only."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: BoxLike, from_mode: BoxMode, to_mode: BoxMode) -> BoxLike:
        """Convert one box (list or tuple of 4) or many ((N, 4) array or tensor), returning the type that was given.

        Supports XYXY_ABS and XYWH_ABS; other formats raise NotImplementedError.
        """
        if from_mode == to_mode:
            return box
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(
                f"conversion from {BoxMode(from_mode).name} to {BoxMode(to_mode).name} is not supported; "
                "use XYXY_ABS and XYWH_ABS"
            )
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"BoxMode.convert takes boxes of 4 numbers, got {len(box)}: {box}")
            values = torch.tensor(box)
        else:
            # torch.tensor would warn on tensors; a copy keeps the caller's array unchanged
            values = torch.from_numpy(np.array(box)) if isinstance(box, np.ndarray) else box.clone()
            if values.shape[-1] != 4:
                raise ValueError(f"BoxMode.convert takes boxes of 4 numbers, got shape {tuple(values.shape)}")
        sign = 1 if to_mode == BoxMode.XYXY_ABS else -1
        values[..., 2:] += sign * values[..., :2]
        if isinstance(box, (list, tuple)):
            return type(box)(values.tolist())  # type: ignore[misc]
        return values.numpy() if isinstance(box, np.ndarray) else values


class Boxes:
    """N boxes in absolute XYXY coordinates, stored as one float32 tensor (N, 4)."""

    def __init__(self, tensor: Tensor) -> None:
        """`tensor`: (N, 4), or anything ``torch.as_tensor`` turns into that; an empty one becomes (0, 4)."""
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.shape[-1] != 4:
            raise ValueError(f"Boxes takes a tensor of shape (N, 4), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def clone(self) -> Boxes:
        """A copy with storage of its own."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        """The boxes on another device."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """Areas (N,) in square pixels; negative for boxes with one inverted side."""
        width_height = self.tensor[:, 2:] - self.tensor[:, :2]
        return width_height[:, 0] * width_height[:, 1]

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip in place to a picture of `box_size` (height, width). Raises ValueError on infinite or NaN values."""
        if not torch.isfinite(self.tensor).all():
            raise ValueError("Boxes.clip met infinite or NaN coordinates; look for them where the boxes are computed")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)  # (N, 2)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=-1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Bool (N,): both sides are longer than `threshold`."""
        return ((self.tensor[:, 2:] - self.tensor[:, :2]) > threshold).all(dim=1)

    def __getitem__(self, item: Any) -> Boxes:
        """Select by int (one box), slice, index tensor or bool mask; always shares the type `Boxes`."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        selected = self.tensor[item]
        if selected.dim() != 2:
            raise IndexError(f"indexing Boxes with {item!r} gives shape {tuple(selected.shape)} instead of (N, 4)")
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Bool (N,): within a picture of `box_size` (height, width) grown by `boundary_threshold` pixels."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(1)
        lower = (x0 >= -boundary_threshold) & (y0 >= -boundary_threshold)
        upper = (x1 < width + boundary_threshold) & (y1 < height + boundary_threshold)
        return lower & upper

    def get_centers(self) -> Tensor:
        """Centres (N, 2), x y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Scale in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list[Boxes]) -> Boxes:
        """Concatenate; an empty list gives no boxes."""
        if not isinstance(boxes_list, (list, tuple)) or not all(isinstance(boxes, Boxes) for boxes in boxes_list):
            raise TypeError("Boxes.cat takes a list or tuple of Boxes")
        if not boxes_list:
            return cls(torch.empty(0, 4))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        """Device of the coordinates."""
        return self.tensor.device

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one tensor (4,) a box."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Areas (N, M) of the intersections of N with M boxes."""
    first, second = boxes1.tensor, boxes2.tensor
    lower = torch.max(first[:, None, :2], second[:, :2])
    upper = torch.min(first[:, None, 2:], second[:, 2:])
    return (upper - lower).clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union (N, M) of N with M boxes; 0 where they do not touch."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - intersection
    return torch.where(intersection > 0, intersection / union, intersection.new_zeros(()))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over the area of the second box (N, M); 0 where they do not touch."""
    intersection = pairwise_intersection(boxes1, boxes2)
    return torch.where(intersection > 0, intersection / boxes2.area(), intersection.new_zeros(()))
