"""The convolution of a dynamic head: over three levels, with learned places (Dai et al., "Dynamic Head", CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.layers.box_ops import as_float32_at_least
from grounding_dino.layers.ms_deform_attn import layout_of_levels
from grounding_dino.ops import ms_deform_attn
from grounding_dino.ops.linear import affine

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_TAPS = 9  # places that a 3 x 3 kernel reads


class DynamicConv(nn.Module):
    """Every level reads the next coarser level, itself and the next finer one, at places that it chooses itself.

    The three results are weighted by the level as a whole (scale-aware attention) and averaged; then channels are
    switched (task-aware attention, :class:`DynamicReLU`).
    """

    def __init__(self, embed_dim: int, num_groups: int = 16) -> None:
        super().__init__()
        # what reads the coarser level, the level itself, and the finer one
        self.branches = nn.ModuleList(DeformableBranch(embed_dim, stride, num_groups) for stride in (1, 1, 2))
        self.offset = nn.Conv2d(embed_dim, 3 * _TAPS, 3, padding=1)
        self.scale_attention = nn.Linear(embed_dim, 1)
        self.activation = DynamicReLU(embed_dim)
        for parameter in self.offset.parameters():  # at first the grid of an ordinary convolution
            nn.init.zeros_(parameter)
        nn.init.normal_(self.scale_attention.weight, std=0.01)
        nn.init.zeros_(self.scale_attention.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """L x (B, C, h, w), finest first -> maps of the same shapes."""
        return [self._level(maps, level) for level in range(len(maps))]

    def _level(self, maps: Sequence[Tensor], level: int) -> Tensor:
        own = maps[level]
        offset, mask = self.offset(own).split((2 * _TAPS, _TAPS), dim=1)
        mask = mask.sigmoid()
        results = [self.branches[1](own, offset, mask)]
        if level > 0:
            results.append(self.branches[2](maps[level - 1], offset, mask))
        if level + 1 < len(maps):
            size = maps[level + 1].shape[-2:]
            coarser = self.branches[0](maps[level + 1], _flat_prefix(offset, size), _flat_prefix(mask, size))
            results.append(F.interpolate(coarser, size=own.shape[-2:], mode="bilinear", align_corners=True))
        weighted = [self._level_weight(result) * result for result in results]
        return self.activation(sum(weighted[1:], weighted[0]) / len(weighted))

    def _level_weight(self, result: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 1, 1, 1) in [0, 1]."""
        return F.hardsigmoid(self.scale_attention(result.mean((2, 3))).relu())[..., None, None]


class DeformableBranch(nn.Module):
    """A 3 x 3 convolution at chosen places, each with a weight (Zhu et al., Deformable ConvNets v2), and GroupNorm."""

    def __init__(self, embed_dim: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(embed_dim, embed_dim, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(num_groups, embed_dim)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, C, H, W), `offset` (B, 18, h, w) in y and x, `mask` (B, 9, h, w) -> (B, C, h, w).

        Where an offset is NaN, so is the result.
        """
        unknown = offset.isnan().unflatten(1, (_TAPS, 2)).any(2)
        mask = mask.masked_fill(unknown, torch.nan)
        if torch.is_grad_enabled():  # nine numbers for each of the map's would be kept of every branch
            result = checkpoint(self._convolve, x, offset, mask, use_reentrant=False, preserve_rng_state=False)
        else:
            result = self._convolve(x, offset, mask)
        return self.norm(result)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Every tap is a query of deformable attention with one head, level and point; then one product."""
        layout = layout_of_levels(((x.shape[2], x.shape[3]),), x.device)
        tokens = x.flatten(2).transpose(1, 2)[:, :, None]  # (B, H W, 1, C)
        locations = self._locations(offset, x.shape[-2:]).flatten(1, 3)[:, :, None, None, None]
        shares = mask.permute(0, 2, 3, 1).flatten(1)[:, :, None, None, None]
        read = ms_deform_attn(tokens, *layout, locations, shares)  # (B, h w 9, C)
        weight = self.convolution.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 9 C)
        result = affine(read.unflatten(1, (-1, _TAPS)).flatten(2), weight, self.convolution.bias)
        return result.transpose(1, 2).unflatten(2, offset.shape[-2:])

    def _locations(self, offset: Tensor, size: Sequence[int]) -> Tensor:
        """(B, h, w, 9, 2): x and y of what taps read, as shares of a map of `size` (H, W); its centre for NaN."""
        offset = as_float32_at_least(offset).unflatten(1, (_TAPS, 2))
        height, width = offset.shape[-2:]
        options: dict[str, Any] = {"dtype": offset.dtype, "device": offset.device}
        taps = torch.arange(_TAPS, **options)
        stride = self.convolution.stride[0]
        rows = torch.arange(height, **options) * stride + (taps // 3 - 0.5)[:, None]  # a cell's centre is at 0.5
        columns = torch.arange(width, **options) * stride + (taps % 3 - 0.5)[:, None]
        y = (offset[:, :, 0] + rows[:, :, None]) / size[0]
        x = (offset[:, :, 1] + columns[:, None]) / size[1]
        return torch.stack((x, y), -1).nan_to_num(nan=0.5).permute(0, 2, 3, 1, 4)


def _flat_prefix(maps: Tensor, size: Sequence[int]) -> Tensor:
    """What the published operator reads of maps (B, K, H, W) that are larger than its output `size` (h, w).

    It goes by flat index and does not look at the shape, so it reads the first K * h * w numbers of each picture as
    (K, h, w). The published weights were trained so.
    """
    height, width = size
    channels = maps.shape[1]
    return maps.flatten(1)[:, : channels * height * width].unflatten(1, (channels, height, width))


class DynamicReLU(nn.Module):
    """The larger of two straight lines, whose slopes and shifts depend on the picture (Chen et al., ECCV 2020)."""

    def __init__(self, embed_dim: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = embed_dim // reduction
        self.coefficients = nn.Sequential(nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, 4 * embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        shares = F.hardsigmoid(self.coefficients(x.mean((2, 3))))[..., None, None] - 0.5
        slope1, shift1, slope2, shift2 = shares.chunk(4, dim=1)  # each (B, C, 1, 1)
        return torch.maximum(x * (2 * slope1 + 1) + shift1, x * (2 * slope2) + shift2)
