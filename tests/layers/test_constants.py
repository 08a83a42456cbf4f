"""Tensors that are kept for sizes."""

from __future__ import annotations

from grounding_dino.layers.constants import kept_for_sizes

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def counted() -> tuple[list[int], object]:
    calls: list[int] = []

    @kept_for_sizes(2)
    def ramp(size: int) -> Tensor:
        calls.append(size)
        return torch.arange(float(size))

    return calls, ramp


def test_computed_once_for_each_of_the_last_sizes() -> None:
    calls, ramp = counted()
    assert ramp(3) is ramp(3)
    ramp(4)
    ramp(5)
    ramp(3)
    assert calls == [3, 4, 5, 3]


def test_kept_in_inference_mode_serves_training() -> None:
    _, ramp = counted()
    with torch.inference_mode():
        ramp(3)
    weight = torch.ones(3, requires_grad=True)
    (weight * ramp(3)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(3.0))


def test_tensors_without_values_are_not_kept() -> None:
    """Memory is estimated so, by tensors of a size alone."""
    _, ramp = counted()
    ramp(3)
    with FakeTensorMode():
        assert type(ramp(3)) is type(ramp(4)) is FakeTensor
    assert type(ramp(3)) is type(ramp(4)) is Tensor


def test_traced_graphs_compute_their_own() -> None:
    calls, ramp = counted()
    ramp(3)
    traced = torch.jit.trace(lambda x: x + ramp(3), torch.zeros(3), check_trace=False)
    assert calls == [3, 3]
    assert torch.equal(traced(torch.ones(3)), torch.arange(3.0) + 1)
    compiled = torch.compile(lambda x: x * ramp(3), fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.arange(3.0))
