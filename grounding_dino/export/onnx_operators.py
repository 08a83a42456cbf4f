"""What torch's exporter does not know: our operators in ONNX's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grounding_dino.ops  # noqa: F401  # registers the operator

import torch


def translations() -> dict[Any, Callable[..., Any]]:
    """`custom_translation_table` of `torch.onnx.export`."""
    return {torch.ops.grounding_dino.ms_deform_attn.default: deformable_attention}


def deformable_attention(
    value: Any, spatial_shapes: Any, level_start_index: Any, sampling_locations: Any, attention_weights: Any
) -> Any:
    """`ops.twin.ms_deform_attn_torch` as a GridSample a level.

    The number of heads, channels, levels and points are the model's; B, Q, S and the levels' sizes are read from the
    tensors when the graph runs.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    heads, channels = int(value.shape[2]), int(value.shape[3])
    levels, points = int(sampling_locations.shape[3]), int(sampling_locations.shape[4])

    def ints(*numbers: int) -> Any:
        return op.Constant(value_ints=list(numbers))

    batch, queries = (op.Shape(sampling_locations, start=axis, end=axis + 1) for axis in (0, 1))
    values = op.Transpose(value, perm=[0, 2, 3, 1])  # (B, H, D, S)
    rows = op.Concat(batch, queries, ints(heads, levels, 2 * points), axis=0)
    places = op.Transpose(op.Reshape(sampling_locations, rows), perm=[3, 0, 2, 1, 4])  # (L, B, H, Q, 2 P)
    places = op.Reshape(places, op.Concat(ints(levels, -1), queries, ints(points, 2), axis=0))  # (L, B * H, Q, P, 2)
    grids = op.Sub(op.Mul(places, op.Constant(value_float=2.0)), op.Constant(value_float=1.0))
    weights = op.Transpose(attention_weights, perm=[3, 0, 2, 1, 4])
    weights = op.Reshape(weights, op.Concat(ints(levels, -1, 1), queries, ints(points), axis=0))  # (L, B * H, 1, Q, P)
    total = None
    for level in range(levels):
        size = op.Reshape(op.Gather(spatial_shapes, ints(level), axis=0), ints(2))  # h, w
        start = op.Gather(level_start_index, ints(level), axis=0)
        feature = op.Slice(values, start, op.Add(start, op.ReduceProd(size, keepdims=1)), ints(3))
        feature = op.Reshape(feature, op.Concat(ints(-1, channels), size, axis=0))  # (B * H, D, h, w)
        grid = op.Squeeze(op.Gather(grids, ints(level), axis=0), ints(0))
        share = op.Squeeze(op.Gather(weights, ints(level), axis=0), ints(0))
        sampled = op.GridSample(feature, grid, align_corners=0, mode="bilinear", padding_mode="zeros")
        sampled = op.ReduceSum(op.Mul(sampled, share), ints(3), keepdims=0)  # (B * H, D, Q)
        total = sampled if total is None else op.Add(total, sampled)
    merged = op.Reshape(total, op.Concat(batch, ints(heads * channels, -1), axis=0))
    return op.Transpose(merged, perm=[0, 2, 1])  # (B, Q, H * D)
