"""Keeping, keying and replaying of CUDA graphs, with a stand-in for the capture, which needs a GPU and was never run in
these tests: it replays by running the function again on the graph's own inputs, into its own results."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from grounding_dino.modeling.cuda_graphs import ShapeGraphs

import pytest
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Tensor
    right: list[Tensor]
    scale: float = 1.0


@pytest.fixture
def capture(graph_capture: Any) -> Iterator[Any]:
    """The stand-in, where no gradients are wanted."""
    with torch.no_grad():
        yield graph_capture


def _sums(pair: Pair, other: dict[str, Tensor]) -> Pair:
    return Pair(pair.left * pair.scale, [right + other["x"] for right in pair.right], pair.scale)


def _inputs(size: int, scale: float = 2.0) -> tuple[Pair, dict[str, Tensor]]:
    return Pair(torch.rand(size), [torch.rand(size), torch.rand(1)], scale), {"x": torch.rand(1)}


def test_shapes_that_come_again_are_replayed(capture: Any) -> None:
    graphs = ShapeGraphs(_sums, capture=capture)
    for count in range(5):
        inputs = _inputs(3)
        found, wanted = graphs(*inputs), _sums(*inputs)
        assert torch.equal(found.left, wanted.left) and found.scale == 2.0
        assert all(map(torch.equal, found.right, wanted.right))
        assert (capture.captures, capture.replays) == (int(count > 0), count)


def test_results_are_the_callers_own(capture: Any) -> None:
    graphs = ShapeGraphs(torch.neg, capture=capture)
    inputs = [torch.full((2,), float(i)) for i in range(4)]
    found = [graphs(x) for x in inputs]
    assert all(torch.equal(y, -x) for x, y in zip(inputs, found))


def test_each_shape_dtype_and_value_has_its_graph(capture: Any) -> None:
    graphs = ShapeGraphs(_sums, capture=capture)
    for _ in range(2):
        for inputs in (_inputs(3), _inputs(4), _inputs(3, scale=1.0)):
            graphs(*inputs)
        graphs(Pair(torch.rand(3).double(), [torch.rand(3)], 2.0), {"x": torch.rand(1)})
        with torch.autocast("cpu", torch.bfloat16):
            graphs(*_inputs(3))
    assert len(graphs) == capture.captures == 5


def test_other_weights_have_other_graphs(capture: Any) -> None:
    weights = [torch.ones(2)]
    graphs = ShapeGraphs(lambda x: x * weights[0], lambda: weights[0].data_ptr(), capture=capture)
    for _ in range(2):
        graphs(torch.ones(2))
    weights[0] = torch.full((2,), 3.0)
    assert [float(graphs(torch.ones(2))[0]) for _ in range(2)] == [3.0, 3.0] and capture.captures == 2


def test_graphs_used_longest_ago_give_way(capture: Any) -> None:
    graphs = ShapeGraphs(torch.neg, limit=2, capture=capture)
    for size in (1, 1, 2, 2, 1, 3, 3):
        graphs(torch.rand(size))
    assert len(graphs) == 2 and capture.captures == 3
    graphs(torch.rand(1))
    assert capture.captures == 3  # still there, since it was used after 2
    for _ in range(2):
        graphs(torch.rand(2))
    assert capture.captures == 4


def test_what_cannot_be_captured_runs_as_it_is_with_one_warning(capture: Any, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(run: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs = ShapeGraphs(torch.neg, capture=refuse)
    with caplog.at_level(logging.WARNING):
        assert [float(graphs(torch.ones(1))) for _ in range(4)] == [-1.0] * 4
    assert len(graphs) == 0
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph for these shapes, which run without: operation not permitted when stream is capturing"
    ]


def test_gradients_and_other_devices_run_as_they_are(capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = ShapeGraphs(torch.neg, capture=capture)
    with torch.enable_grad():
        for _ in range(3):
            assert graphs(torch.ones(1, requires_grad=True)).requires_grad
    monkeypatch.setattr(ShapeGraphs, "device_type", "cuda")
    for _ in range(3):
        graphs(torch.ones(1))
    assert capture.captures == 0


def test_graphs_of_inference_mode_serve_other_calls(capture: Any) -> None:
    graphs = ShapeGraphs(torch.neg, capture=capture)
    with torch.inference_mode():
        for _ in range(2):
            graphs(torch.ones(1))
    assert float(graphs(torch.full((1,), 2.0))) == -2.0 and capture.captures == 1
