"""Plain-PyTorch multi-scale deformable attention: the oracle of the native kernels and the fallback without them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Replacements of non-finite coordinates: outside of every level, whatever its size, and finite after scaling.
_OUTSIDE = 10.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of locations, weights and sums for values of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ms_deform_attn_torch(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples from several feature levels (Deformable DETR, arXiv:2010.04159, equation 3).

    Args:
        value: (B, S, H, D), any floating dtype; the levels of a picture flattened and put one after the other.
        spatial_shapes: (L, 2) int64, height and width of each level.
        level_start_index: (L,) int64, first row of each level in `value`.
        sampling_locations: (B, Q, H, L, P, 2), x and y in [0, 1] over a level's extent. Outside of it samples read
            zeros (bilinear at the border, pixel centres at half coordinates); NaN and infinity count as outside.
        attention_weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H * D) in the dtype of `value`; computed in float64 for float64 and in float32 for anything else.
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], sampling_locations.shape[3], sampling_locations.shape[4]
    dtype = compute_dtype(value.dtype)
    locations = torch.nan_to_num(sampling_locations.to(dtype), nan=_OUTSIDE, posinf=_OUTSIDE, neginf=-_OUTSIDE)
    grids = (2.0 * locations - 1.0).transpose(1, 2).flatten(0, 1)  # (B * H, Q, L, P, 2)
    samples = []
    for level, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    ):
        feature = value[:, start : start + height * width].to(dtype).permute(0, 2, 3, 1)
        feature = feature.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, level]
        samples.append(F.grid_sample(feature, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.to(dtype).transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    stacked = torch.stack(samples, dim=-2).flatten(-2)  # (B * H, D, Q, L * P)
    output = (stacked * weights).sum(-1).view(batch, heads * channels, queries)
    return output.transpose(1, 2).contiguous().to(value.dtype)
