"""Backbone maps to a feature pyramid: equal channels, extra coarse levels, padding masks."""

from __future__ import annotations

from collections.abc import Sequence

from grounding_dino.structures import FeaturePyramid

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn


class InputProjection(nn.ModuleList):
    """A 1x1 convolution and GroupNorm for each backbone map, and stride-2 convolutions on the last for extra levels."""

    def __init__(self, input_shapes: Sequence[ShapeSpec], embed_dim: int, num_levels: int) -> None:
        """`input_shapes` finest first; `num_levels` may exceed their number."""
        channels = [int(shape.channels or 0) for shape in input_shapes]
        if num_levels < len(channels):
            raise ValueError(
                f"MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS is {num_levels}, fewer than its {len(channels)} IN_FEATURES"
            )
        layers = [nn.Conv2d(c, embed_dim, kernel_size=1) for c in channels]
        for extra in range(num_levels - len(channels)):
            previous = embed_dim if extra else channels[-1]
            layers.append(nn.Conv2d(previous, embed_dim, kernel_size=3, stride=2, padding=1))
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        super().__init__(nn.Sequential(layer, nn.GroupNorm(32, embed_dim)) for layer in layers)
        self.num_inputs = len(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`maps` L' x (B, C_l, h, w), finest first -> L x (B, C, h, w)."""
        projected = [layer(x) for layer, x in zip(self, maps)]
        x = maps[-1]
        for layer in list(self)[self.num_inputs :]:
            x = layer(x)
            projected.append(x)
        return projected


def pyramid_of_padded(maps: list[Tensor], sizes: Sequence[Sequence[int]], padded_size: Sequence[int]) -> FeaturePyramid:
    """The pyramid of pictures of `sizes` (h, w) that were padded to `padded_size` before the backbone."""
    padding_mask = torch.ones(len(sizes), *padded_size, dtype=torch.bool, device=maps[0].device)
    for row, (height, width) in zip(padding_mask, sizes):
        row[:height, :width] = False
    mask = padding_mask[:, None].float()
    masks = [F.interpolate(mask, size=m.shape[-2:])[:, 0].bool() for m in maps]
    return FeaturePyramid(maps, masks, has_padding=any(tuple(size) != tuple(padded_size) for size in sizes))


def pyramid_of_pictures(pictures: list[list[Tensor]]) -> FeaturePyramid:
    """Pad the maps of single pictures, L x (C, h, w) each, to the largest at every level."""
    maps, masks = [], []
    has_padding = False
    for level in zip(*pictures):
        height = max(m.shape[1] for m in level)
        width = max(m.shape[2] for m in level)
        if all(m.shape[1:] == (height, width) for m in level):
            maps.append(torch.stack(level))
            masks.append(maps[-1].new_zeros(len(level), height, width, dtype=torch.bool))
            continue
        has_padding = True
        padded = level[0].new_zeros(len(level), level[0].shape[0], height, width)
        mask = torch.ones(len(level), height, width, dtype=torch.bool, device=padded.device)
        for i, m in enumerate(level):
            padded[i, :, : m.shape[1], : m.shape[2]] = m
            mask[i, : m.shape[1], : m.shape[2]] = False
        maps.append(padded)
        masks.append(mask)
    return FeaturePyramid(maps, masks, has_padding)
