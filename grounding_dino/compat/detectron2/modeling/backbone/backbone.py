"""Abstract base of backbones."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """Maps pictures (B, C, H, W) to a dict of feature maps.

    Subclasses set ``_out_features``, ``_out_feature_channels`` and ``_out_feature_strides`` or override `output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(self) -> None:
        super().__init__()

    if TYPE_CHECKING:
        forward: Callable[..., Any]  # so that type checkers let subclasses take a picture
    else:

        @abstractmethod
        def forward(self):
            """Return a dict from feature name to feature map (B, C', H / stride, W / stride)."""

    @property
    def size_divisibility(self) -> int:
        """What the height and width of the input must be divisible by; 0 for no demand."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Demands on the padded input: ``square_size`` and ``size_divisibility``, as `ImageList.from_tensors` takes."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map returned."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
