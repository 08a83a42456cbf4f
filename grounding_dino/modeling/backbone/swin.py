"""Swin Transformer (Liu et al., 2021), for pictures of any size.

Maps that are not a multiple of the window are zero-padded after the first norm, and the padding is *not* masked as
keys: the published detection weights were trained so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.layers.blocks import FeedForward, StochasticDepth, block_of, in_blocks
from grounding_dino.layers.constants import kept_for_sizes
from grounding_dino.ops.linear import linear

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class WindowAttention(nn.Module):
    """Self-attention inside a window, with a learned bias for every relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """`windows` (B x windows, window^2, C); `mask` (windows, window^2, window^2) is added to the scores."""
        length = windows.shape[1]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(1, length, length, self.num_heads).permute(0, 3, 1, 2)  # (1, heads, window^2, window^2)
        count = windows.shape[0]  # `len` would fix a traced graph's batch
        if mask is not None and mask.shape[0] < count:
            mask = mask.repeat(count // mask.shape[0], 1, 1)  # of each picture
        block = block_of(windows) // length
        if not block:
            return self._attend(windows, bias, mask)
        masks = [None] * count if mask is None else mask.split(block)
        parts = [self._attend(part, bias, m) for part, m in zip(windows.split(block), masks)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)  # which copies even a single one

    def _attend(self, windows: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Some windows (N, window^2, C) with their masks."""
        q, k, v = linear(self.qkv, windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = bias if mask is None else bias + mask[:, None]
        out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))  # 4-D: others have no fast implementation
        return linear(self.projection, out.transpose(1, 2).flatten(2))


def relative_position_index(window_size: int) -> Tensor:
    """(window^2, window^2) row of the bias table for each pair of cells."""
    axis = torch.arange(window_size)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return dy * (2 * window_size - 1) + dx


class SwinBlock(nn.Module):
    """Window attention (shifted in every second block) and a feed-forward network, both pre-norm."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), activation="gelu")
        self.drop_path = StochasticDepth(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (B, H, W, C); `mask` separates what a cyclic shift brought together, None without shift."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(in_blocks(self._feed_forward, x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        _, height, width, _ = x.shape
        window = self.window_size
        x = F.pad(x, (0, 0, 0, up_to(width, window) - width, 0, up_to(height, window) - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        padded = x.shape
        x = window_partition(x, window)
        x = self.attention(x, mask)
        x = window_reverse(x, window, padded[1], padded[2])
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


def up_to(size: int, multiple: int) -> int:
    """The next multiple that is no smaller; without remainders, which a traced graph could hardly cancel."""
    return (size + multiple - 1) // multiple * multiple


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B x windows, window^2, C); H and W are multiples of `window`."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`window_partition`."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c)
    return x.transpose(2, 3).reshape(-1, height, width, c)


@kept_for_sizes(16)  # four stages of four sizes
def shifted_window_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, window^2, window^2): 0 between cells of one region of the shifted map, -100 between regions."""

    def regions(size: int) -> Tensor:
        padded = up_to(size, window)
        index = torch.arange(padded, device=device)
        return (index >= padded - window).long() + (index >= padded - shift).long()

    labels = regions(height)[:, None] * 3 + regions(width)[None, :]
    labels = window_partition(labels[None, :, :, None], window)[..., 0]  # (windows, window^2)
    return (labels[:, None, :] != labels[:, :, None]).float() * -100.0


class PatchMerging(nn.Module):
    """Halve the resolution: 2x2 neighbours, concatenated pixel by pixel, normed and projected to twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H/2, W/2, 2C), rounded up; an odd side is zero-padded."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, up_to(width, 2) - width, 0, up_to(height, 2) - height))
        # order of the checkpoints: (even row, even column), (odd, even), (even, odd), (odd, odd)
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return linear(self.reduction, self.norm(x))


class SwinStage(nn.Module):
    """Blocks at one resolution, and the merging that leads to the next."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        downsample: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2
        self.activation_checkpointing = activation_checkpointing
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window_size, self.shift * (i % 2), mlp_ratio, rate)
            for i, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape; merging is left to the caller, who also reads the stage's output."""
        mask = shifted_window_mask(x.shape[1], x.shape[2], self.window_size, self.shift, x.device)
        for block in self.blocks:
            block_mask = mask if block.shift else None
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, block_mask, use_reentrant=False)
            else:
                x = block(x, block_mask)
        return x


class PatchEmbed(nn.Module):
    """4x4 patches to tokens: a strided convolution and a norm."""

    def __init__(self, embed_dim: int, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, C), rounded up."""
        height, width = images.shape[-2:]
        size = self.patch_size
        images = F.pad(images, (0, up_to(width, size) - width, 0, up_to(height, size) - height))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


@BACKBONE_REGISTRY.register()
class SwinTransformer(Backbone):
    """Outputs `stage1` ... `stage4` (strides 4 to 32), each behind its own LayerNorm, as (B, C, H, W)."""

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = ("stage2", "stage3", "stage4"),
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        names = [f"stage{i + 1}" for i in range(len(depths))]
        unknown = sorted(set(out_features) - set(names))
        if unknown:
            raise ValueError(f"unknown Swin outputs {unknown}; this backbone has {names}")
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(names, dims))
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(names)}
        self.patch_embed = PatchEmbed(embed_dim)
        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.layers = nn.ModuleList(
            SwinStage(
                dim=dims[i],
                num_heads=num_heads[i],
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                drop_paths=rates[sum(depths[:i]) : sum(depths[: i + 1])],
                downsample=i + 1 < len(depths),
                activation_checkpointing=activation_checkpointing,
            )
            for i in range(len(depths))
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(self._out_feature_channels[name]) for name in out_features})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read MODEL.SWIN."""
        swin = cfg.MODEL.SWIN
        return {
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "out_features": swin.OUT_FEATURES,
            "activation_checkpointing": swin.ACTIVATION_CHECKPOINTING_ON,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images` (B, 3, H, W), normalised -> the configured stages."""
        x = self.patch_embed(images)
        outputs = {}
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            name = f"stage{i + 1}"
            x = stage(x)
            if name in self.norms:
                outputs[name] = self.norms[name](x).permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
