"""Comparing a model with the authors' stored numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
