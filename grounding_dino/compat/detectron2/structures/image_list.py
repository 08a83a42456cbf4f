"""A batch of pictures of different sizes in one padded tensor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ImageList:
    """Pictures padded at the right and bottom to a common size.

    `tensor` (N, C, H, W) or (N, H, W); `image_sizes` the sizes (height, width) before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = [(int(height), int(width)) for height, width in image_sizes]

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Picture `idx` in its own size, as a view: (C, h, w) or (h, w)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """``Tensor.to`` on the batch."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Device of the batch."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pad pictures (C, h, w) or (h, w), equal in all but the last two dimensions, and stack them.

        The common size is the largest height and width, or the square side ``padding_constraints["square_size"]`` where
        that is positive, rounded up to a multiple of `size_divisibility` (or of the constraint of that name).
        """
        if not isinstance(tensors, (list, tuple)) or not tensors:
            raise ValueError("ImageList.from_tensors takes a list of at least one tensor")
        if len({tuple(tensor.shape[:-2]) for tensor in tensors}) > 1:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(f"pictures of a batch must agree in channels, got shapes {shapes}")
        constraints = padding_constraints or {}
        image_sizes = [(tensor.shape[-2], tensor.shape[-1]) for tensor in tensors]
        height, width = (max(sizes) for sizes in zip(*image_sizes))
        square = constraints.get("square_size", 0)
        if square > 0:
            height = width = square
        stride = constraints.get("size_divisibility", size_divisibility)
        if stride > 1:
            height, width = (-(-side // stride) * stride for side in (height, width))

        padded = [
            F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=pad_value)
            for tensor in tensors
        ]
        return ImageList(torch.stack(padded), image_sizes)
