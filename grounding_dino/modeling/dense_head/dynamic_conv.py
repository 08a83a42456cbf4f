"""The convolution of a dynamic head: over three levels, with learned places (Dai et al., "Dynamic Head", CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from grounding_dino.layers.box_ops import as_float32_at_least

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TAPS = 9  # places that a 3 x 3 kernel reads
_FAR_AWAY = 1e6  # pixels: outside of every picture, where there are zeros


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
        from torchvision.ops import DeformConv2d  # on use: it takes seconds to import

        self.convolution = DeformConv2d(embed_dim, embed_dim, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(num_groups, embed_dim)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, C, H, W), `offset` (B, 18, h, w) in y and x, `mask` (B, 9, h, w) -> (B, C, h, w).

        Where an offset is NaN, so is the result.
        """
        from torchvision.ops import deform_conv2d

        layer = self.convolution
        unknown = offset.isnan()  # at such places the operator would read, and crash, anywhere in memory
        mask = mask.masked_fill(unknown.unflatten(1, (_TAPS, 2)).any(2), torch.nan)
        offset = offset.nan_to_num(nan=_FAR_AWAY)
        _refuse_sums_in_no_order(x, offset)
        with torch.autocast(x.device.type, enabled=False):  # there is no kernel for bfloat16
            parts = (as_float32_at_least(part) for part in (x, offset, layer.weight, layer.bias, mask))
            x_, offset_, weight, bias, mask_ = parts
            result = deform_conv2d(x_, offset_, weight, bias, stride=layer.stride, padding=layer.padding, mask=mask_)
        return self.norm(result.to(x.dtype))


def _refuse_sums_in_no_order(*inputs: Tensor) -> None:
    """Raise what torch raises for its own operations: torchvision's gradient on a GPU does not, or not in all versions.

    It adds to the map's gradient in whatever order its threads come.
    """
    if inputs[0].device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return
    if torch.is_grad_enabled() and any(part.requires_grad for part in inputs):
        raise RuntimeError(
            "SOLVER.DETERMINISTIC_ON is True, but on a GPU the gradient of torchvision's deformable convolution (in "
            "GLIP's tower) has no form that gives the same bits again; set it to False, train on the CPU, or freeze "
            "all but the head (SOLVER.FREEZE)"
        )


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
