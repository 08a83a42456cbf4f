"""Comparing a model with the authors' stored numbers; a stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grounding_dino.modeling import cuda_graphs

import numpy as np
import pytest
from torch import Tensor


class Golden:
    """The arrays of one reference case."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.scores: Tensor | None = None  # of all tokens, as the last selection saw them

    def selected(self, model: Any, indices: Tensor, run: Callable[[], Any]) -> Any:
        """`run()` while `model` selects the tokens `indices` (B, Q), whatever their scores."""

        def select(scores: Tensor, memory: Any) -> tuple[Tensor, None]:
            self.scores = scores
            return indices, None

        model.query_selection.select = select
        try:
            return run()
        finally:
            del model.query_selection.select

    def check(self, ours: Tensor, name: str, atol: float) -> None:
        """See that `ours` has the shape and values of the array, infinite ones included."""
        expected = self.arrays[name]
        assert tuple(ours.shape) == expected.shape, name
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(ours.numpy()), finite, err_msg=name)
        np.testing.assert_allclose(ours.numpy()[finite], expected[finite], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="session")
def golden_of() -> Callable[[dict[str, np.ndarray]], Golden]:
    """`golden_of(arrays)`: the arrays of a case, to compare with."""
    return Golden


class StandInCapture:
    """In the place of a CUDA graph's capture, which needs a GPU: runs the function, and replays by running it again on
    the graph's own inputs, into the results of the capture, as a graph does. Counts both."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.captures += 1
        results = run()
        kept: list[Tensor] = []
        cuda_graphs._flatten(results, kept)

        def replay() -> None:
            self.replays += 1
            again: list[Tensor] = []
            cuda_graphs._flatten(run(), again)
            for own, new in zip(kept, again, strict=True):
                own.copy_(new)

        return replay, results


@pytest.fixture
def graph_capture(monkeypatch: pytest.MonkeyPatch) -> StandInCapture:
    """A stand-in for the capture, which every new `ShapeGraphs` takes; graphs are for the CPU."""
    capture = StandInCapture()
    monkeypatch.setattr(cuda_graphs.ShapeGraphs, "device_type", "cpu")
    monkeypatch.setattr(cuda_graphs, "CudaCapture", lambda: capture)
    return capture
