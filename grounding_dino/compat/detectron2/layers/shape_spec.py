"""What a module says about the tensors it takes or returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Static facts about a feature map: `channels`, `height`, `width`, and `stride` relative to the image."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
