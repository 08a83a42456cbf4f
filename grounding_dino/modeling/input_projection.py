"""Backbone maps to a feature pyramid: equal channels, extra coarse levels, padding masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grounding_dino.structures import FeaturePyramid

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn


class InputProjection(nn.ModuleList):
    """A 1x1 convolution and GroupNorm for each backbone map, and stride-2 convolutions on the last for extra levels."""

    def __init__(
        self,
        input_shapes: Sequence[ShapeSpec],
        embed_dim: int,
        num_levels: int,
        mask_input: tuple[str, ShapeSpec] | None = None,
        bias: bool = True,
    ) -> None:
        """`input_shapes` finest first; `num_levels` may exceed their number.

        Args:
            mask_input: name and shape of the backbone's map that mask features are made from; None without masks.
            bias: of the levels' convolutions.
        """
        channels = [int(shape.channels or 0) for shape in input_shapes]
        if num_levels < len(channels):
            raise ValueError(
                f"MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS is {num_levels}, fewer than its {len(channels)} IN_FEATURES"
            )
        layers = [nn.Conv2d(c, embed_dim, kernel_size=1, bias=bias) for c in channels]
        for extra in range(num_levels - len(channels)):
            previous = embed_dim if extra else channels[-1]
            layers.append(nn.Conv2d(previous, embed_dim, kernel_size=3, stride=2, padding=1, bias=bias))
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        super().__init__(nn.Sequential(layer, nn.GroupNorm(32, embed_dim)) for layer in layers)
        self.num_inputs = len(channels)
        self.num_levels = num_levels
        self.mask_map: nn.Module | None = None  # beside the levels, which are the numbered entries
        self.mask_input = ""
        if mask_input is not None:
            self.mask_input, shape = mask_input
            self.mask_map = conv_norm(int(shape.channels or 0), embed_dim, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`maps` L' x (B, C_l, h, w), finest first -> L x (B, C, h, w)."""
        layers = [self[level] for level in range(self.num_levels)]
        projected = [layer(x) for layer, x in zip(layers, maps)]
        x = maps[-1]
        for layer in layers[self.num_inputs :]:
            x = layer(x)
            projected.append(x)
        return projected


def conv_norm(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """A convolution without bias, of equal size, and GroupNorm."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.GroupNorm(32, out_channels))


def pyramid_of_padded(
    maps: list[Tensor], sizes: Sequence[Sequence[int]], padded_size: Sequence[int], mask_map: Tensor | None = None
) -> FeaturePyramid:
    """The pyramid of pictures of `sizes` (h, w) that were padded to `padded_size` before the backbone."""
    padding_mask = torch.ones(len(sizes), *padded_size, dtype=torch.bool, device=maps[0].device)
    for row, (height, width) in zip(padding_mask, sizes):
        row[:height, :width] = False
    mask = padding_mask[:, None].float()
    masks = [F.interpolate(mask, size=m.shape[-2:])[:, 0].bool() for m in maps]
    has_padding = any(tuple(size) != tuple(padded_size) for size in sizes)
    return FeaturePyramid(maps, masks, has_padding, mask_map, tuple((int(h), int(w)) for h, w in sizes))


def pyramid_of_pictures(
    pictures: list[list[Tensor]], sizes: Sequence[Sequence[int]] = (), mask_maps: list[Tensor] | None = None
) -> FeaturePyramid:
    """Pad the maps of single pictures of `sizes` (h, w), L x (C, h, w) each, to the largest at every level."""
    maps, masks = [], []
    has_padding = False
    for level in zip(*pictures):
        padded, mask = pad_maps(level)
        has_padding = has_padding or mask is not None
        maps.append(padded)
        masks.append(padded.new_zeros(padded[:, 0].shape, dtype=torch.bool) if mask is None else mask)
    mask_map = None if mask_maps is None else pad_maps(mask_maps)[0]
    fewest = min((sum(m[0].numel() for m in picture) for picture in pictures), default=0)
    return FeaturePyramid(maps, masks, has_padding, mask_map, tuple((int(h), int(w)) for h, w in sizes), fewest)


def pad_pyramid(features: FeaturePyramid, multiple: int) -> FeaturePyramid:
    """`features`, without a map for masks, padded as by a larger picture beside it: masked, and to whole multiples.

    Args:
        multiple: cells of the finest level; of each coarser one half as many, at least 1.
    """
    maps, masks = [], []
    for level, (each, mask) in enumerate(zip(features.maps, features.padding_masks)):
        cells = max(1, multiple >> level)
        below, right = (-size % cells for size in each.shape[-2:])
        maps.append(F.pad(each, (0, right, 0, below)))
        masks.append(F.pad(mask, (0, right, 0, below), value=True))
    has_padding = features.has_padding or any(m.shape != each.shape for m, each in zip(maps, features.maps))
    return dataclasses.replace(features, maps=maps, padding_masks=masks, has_padding=has_padding)


def pad_maps(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Maps (C, h, w) zero-padded right and below to one size, (B, C, H, W), and what is padding (None: nothing)."""
    height, width = (max(m.shape[axis] for m in maps) for axis in (1, 2))
    if all(m.shape[1:] == (height, width) for m in maps):
        return torch.stack(list(maps)), None
    padded = maps[0].new_zeros(len(maps), maps[0].shape[0], height, width)
    mask = torch.ones(len(maps), height, width, dtype=torch.bool, device=padded.device)
    for i, m in enumerate(maps):
        padded[i, :, : m.shape[1], : m.shape[2]] = m
        mask[i, : m.shape[1], : m.shape[2]] = False
    return padded, mask
