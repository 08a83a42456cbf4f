"""The plain-PyTorch twin against a literal reading of the definition."""

from __future__ import annotations

import math

from grounding_dino.ops import ms_deform_attn_torch
from grounding_dino.ops.twin import ms_deform_attn_in_order

import pytest
import torch
from torch import Tensor

SHAPES = torch.tensor([[3, 4], [1, 1], [2, 1]])
STARTS = torch.tensor([0, 12, 13])


def _inputs(dtype: torch.dtype = torch.float64, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 15, 2, 3, generator=generator, dtype=dtype)
    locations = torch.rand(2, queries, 2, 3, 2, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, queries, 2, 3, 2, generator=generator, dtype=dtype)
    return value, locations, weights


def _pixel(value: Tensor, b: int, h: int, level: int, y: int, x: int) -> Tensor:
    height, width = SHAPES[level].tolist()
    if not (0 <= y < height and 0 <= x < width):
        return torch.zeros(value.shape[-1], dtype=value.dtype)
    return value[b, int(STARTS[level]) + y * width + x, h]


def _sample(value: Tensor, b: int, h: int, level: int, location: Tensor) -> Tensor:
    height, width = SHAPES[level].tolist()
    x, y = float(location[0]) * width - 0.5, float(location[1]) * height - 0.5
    left, top = math.floor(x), math.floor(y)
    total = torch.zeros(value.shape[-1], dtype=value.dtype)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        total += (1 - abs(y - row)) * (1 - abs(x - column)) * _pixel(value, b, h, level, row, column)
    return total


def test_equals_the_definition_point_by_point() -> None:
    value, locations, weights = _inputs()
    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for b, q, h, level, point in torch.cartesian_prod(*(torch.arange(n) for n in weights.shape)).tolist():
        sample = _sample(value, b, h, level, locations[b, q, h, level, point])
        expected[b, q, h] += weights[b, q, h, level, point] * sample
    output = ms_deform_attn_torch(value, SHAPES, STARTS, locations, weights)
    torch.testing.assert_close(output, expected.flatten(2))


def test_gradients_in_double() -> None:
    inputs = [t.requires_grad_() for t in _inputs()]
    assert torch.autograd.gradcheck(lambda v, p, w: ms_deform_attn_torch(v, SHAPES, STARTS, p, w), inputs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_points_that_are_nowhere_count_as_outside(bad: float) -> None:
    value, locations, weights = _inputs()
    locations[0, 1, 0, 1, 0, 0] = bad
    moved = locations.clone().index_put_(
        tuple(torch.tensor([i]) for i in (0, 1, 0, 1, 0)), torch.tensor([9.0, 9.0]).double()
    )
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
    output = ms_deform_attn_torch(leaves[0], SHAPES, STARTS, leaves[1], leaves[2])
    torch.testing.assert_close(output, ms_deform_attn_torch(value, SHAPES, STARTS, moved, weights))
    output.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_held_in_single_precision(dtype: torch.dtype) -> None:
    value, locations, weights = (t.float() for t in _inputs())
    output = ms_deform_attn_torch(value.to(dtype), SHAPES, STARTS, locations, weights)
    assert output.dtype == dtype
    exact = ms_deform_attn_torch(value.to(dtype).double(), SHAPES, STARTS, locations.double(), weights.double())
    torch.testing.assert_close(output, exact.to(dtype))


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_in_nothing_out(empty: str) -> None:
    value, locations, weights = _inputs(queries=0 if empty == "queries" else 3)
    if empty == "batch":
        value, locations, weights = value[:0], locations[:0], weights[:0]
    value.requires_grad_()
    output = ms_deform_attn_torch(value, SHAPES, STARTS, locations, weights)
    assert output.shape == (value.shape[0], locations.shape[1], 6)
    output.sum().backward()
    assert value.grad is not None and not value.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_form_with_gradients_in_order_is_the_same_function(dtype: torch.dtype) -> None:
    value, locations, weights = _inputs()
    for place, coordinate in enumerate((math.nan, math.inf, 1e30, -1e30)):
        locations[0, 1, 0, 1, 0, 0], locations[1, place % 3, 1, 0, 1] = coordinate, coordinate
    results = []
    for function in (ms_deform_attn_torch, ms_deform_attn_in_order):
        leaves = [t.to(dtype).requires_grad_() for t in (value, locations, weights)]
        output = function(leaves[0], SHAPES, STARTS, leaves[1], leaves[2])
        assert output.dtype == dtype
        (output.double() ** 2).sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
