"""Multi-scale deformable attention as a module (Deformable DETR, equation 3)."""

from __future__ import annotations

import math

from grounding_dino.layers.box_ops import as_float32_at_least
from grounding_dino.ops import ms_deform_attn

import torch
from torch import Tensor, nn


class MSDeformAttn(nn.Module):
    """Each query samples `num_points` learned places a head and level, weights them, and sums."""

    def __init__(self, embed_dim: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h looks in direction 2 pi h / heads, point p at distance p + 1 cells; all points weigh the same."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (B, Q, C).

        `query` (B, Q, C); `reference_points` (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh in [0, 1] of each padded level;
        `value` (B, S, C); `padding_mask` (B, S), True where the value does not count.
        """
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, heads, C / heads)
        points = (self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        weights = as_float32_at_least(weights).softmax(-1).unflatten(-1, points[1:])  # (B, Q, heads, L, points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        locations = self._sampling_locations(offsets, reference_points, spatial_shapes)
        return self.output_proj(ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights))

    def _sampling_locations(self, offsets: Tensor, reference_points: Tensor, spatial_shapes: Tensor) -> Tensor:
        reference = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 2:  # offsets count cells of their level
            return reference + offsets / spatial_shapes.flip(-1)[:, None]
        if reference.shape[-1] == 4:  # offsets count half boxes
            return reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        raise ValueError(f"reference points have 2 or 4 coordinates, not {reference.shape[-1]}")
