"""Pictures padded to one size in a graph, with the results that each has alone.

`GeneralizedDINO` runs its backbone on each picture in its own size. A graph gets a padded batch, and cannot take it
apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PictureSizes:
    """Heights and widths of the pictures of a padded batch, in pixels, as tensors (B,) int64."""

    heights: Tensor
    widths: Tensor

    @classmethod
    def of_mask(cls, padding_mask: Tensor) -> PictureSizes:
        """`padding_mask` (B, H, W), True right of and below each picture."""
        return cls((~padding_mask[:, :, 0]).sum(1), (~padding_mask[:, 0, :]).sum(1))

    def padding(self, feature: Tensor, stride: int) -> Tensor:
        """(B, h, w) bool: the padding of a map (B, C, h, w); a cell that a picture ends in is its own."""
        height, width = feature.shape[-2:]
        # divided as positive numbers: ONNX rounds towards zero
        rows = torch.div(self.heights + stride - 1, stride, rounding_mode="floor")
        columns = torch.div(self.widths + stride - 1, stride, rounding_mode="floor")
        below = torch.arange(height, device=feature.device) >= rows[:, None]
        right = torch.arange(width, device=feature.device) >= columns[:, None]
        return below[:, :, None] | right[:, None, :]


@contextmanager
def as_if_alone(model: Any, sizes: PictureSizes) -> Iterator[None]:
    """While it lasts, the model's convolutions see zeros where a picture is padded."""
    yield
