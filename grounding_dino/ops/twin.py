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


def ms_deform_attn_in_order(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """As :func:`ms_deform_attn_torch`, of operations whose gradients have the same bits again on GPUs too.

    There the gradient of the values is otherwise added up in the order in which threads come by (`grid_sample`, and
    atomics in the kernel); torch sorts it for `gather` under `torch.use_deterministic_algorithms`. It takes several
    times the memory.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    dtype = compute_dtype(value.dtype)
    locations = torch.nan_to_num(sampling_locations.to(dtype), nan=_OUTSIDE).clamp(-_OUTSIDE, _OUTSIDE)
    locations = locations.transpose(1, 2).flatten(0, 1)  # (B * H, Q, L, P, 2)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # (B * H, Q, L, P)
    rows = value.to(dtype).transpose(1, 2).flatten(0, 1)  # (B * H, S, D)
    output = rows.new_zeros(batch * heads, queries, channels)
    for level, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    ):
        feature = rows[:, start : start + height * width]
        x, y = (locations[:, :, level] * locations.new_tensor([width, height]) - 0.5).unbind(-1)  # (B * H, Q, P)
        left, top = x.detach().floor(), y.detach().floor()
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
                corner = feature.gather(1, index.flatten(1)[..., None].expand(-1, -1, channels))
                share = share_x * share_y * inside * weights[:, :, level]
                output = output + (corner.unflatten(1, index.shape[1:]) * share[..., None]).sum(2)
    return output.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2).to(value.dtype)
