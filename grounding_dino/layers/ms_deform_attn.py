"""Multi-scale deformable attention as a module (Deformable DETR, equation 3)."""

from __future__ import annotations

import math

from grounding_dino.layers.box_ops import as_float32_at_least
from grounding_dino.layers.constants import kept_for_sizes
from grounding_dino.ops import ms_deform_attn
from grounding_dino.ops.linear import linear

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
        value = self.project(value, padding_mask)
        return self.attend(query, reference_points, value, spatial_shapes, level_start_index)

    def project(self, value: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, S, C) -> what queries sample, (B, S, heads, C / heads); the mask is that of `forward`."""
        value = linear(self.value_proj, value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        return value.unflatten(-1, (self.num_heads, -1))

    def attend(
        self, query: Tensor, reference_points: Tensor, value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor
    ) -> Tensor:
        """As `forward`, of a `value` that `project` gave: queries may come in parts."""
        points = (self.num_heads, self.num_levels, self.num_points)
        weights = linear(self.attention_weights, query).unflatten(-1, (self.num_heads, -1))
        weights = as_float32_at_least(weights).softmax(-1).unflatten(-1, points[1:])  # (B, Q, heads, L, points)
        offsets = linear(self.sampling_offsets, query).unflatten(-1, (self.num_heads, -1))
        locations = self._sampling_locations(offsets, reference_points, spatial_shapes).unflatten(-1, (*points[1:], 2))
        sampled = ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)
        return linear(self.output_proj, sampled)

    def _sampling_locations(self, offsets: Tensor, reference_points: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Offsets (B, Q, heads, L * points * 2) and references to locations, in rows as long as those of offsets."""
        dtype = torch.promote_types(offsets.dtype, reference_points.dtype)
        if reference_points.shape[-1] == 2:  # offsets count cells of their level
            size = self._for_points(spatial_shapes.flip(-1).to(dtype))
            return torch.addcdiv(self._for_points(reference_points)[:, :, None], offsets.to(dtype), size)
        if reference_points.shape[-1] == 4:  # offsets count half boxes
            centre, size = (self._for_points(x)[:, :, None] for x in reference_points.split(2, dim=-1))
            return torch.addcmul(centre, offsets / self.num_points, size, value=0.5)
        raise ValueError(f"reference points have 2 or 4 coordinates, not {reference_points.shape[-1]}")

    def _for_points(self, x: Tensor) -> Tensor:
        """(..., L, 2) of each level -> (..., L * points * 2), of each point."""
        return x[..., None, :].expand(*x.shape[:-1], self.num_points, 2).flatten(-3)


@kept_for_sizes(64)  # each level of GLIP's pictures alone, too
def layout_of_levels(sizes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """`spatial_shapes` (L, 2) and `level_start_index` (L,) of levels of `sizes` (h, w), one behind the other."""
    shapes = torch.tensor(sizes, dtype=torch.int64, device=device)
    tokens = shapes.prod(1)
    return shapes, tokens.cumsum(0) - tokens
