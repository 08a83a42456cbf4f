"""Tensors that depend on sizes alone, computed once for each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._guards import detect_fake_mode

Function = TypeVar("Function", bound=Callable[..., Any])

_captured: list[Any] = []  # a CUDA graph reads the tensors of its capture for as long as it is replayed


def kept_for_sizes(count: int) -> Callable[[Function], Function]:
    """Decorator: keep what a function returned for its last `count` different (hashable) arguments.

    Results are shared, so nobody may change them. While a graph is traced the function runs: constants of a size have
    no place in a graph for all sizes. So it does under a `FakeTensorMode`, whose tensors have no values. What is kept
    was computed without gradient and outside of inference mode, and so serves training too.
    """

    def decorate(function: Function) -> Function:
        @functools.lru_cache(maxsize=count)
        def compute(*arguments: Any) -> Any:
            with torch.inference_mode(False), torch.no_grad():
                return function(*arguments)

        @functools.wraps(function)
        def kept(*arguments: Any) -> Any:
            if torch.compiler.is_compiling() or torch.jit.is_tracing() or detect_fake_mode() is not None:
                return function(*arguments)
            result = compute(*arguments)
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                _captured.append(result)
            return result

        return kept  # type: ignore[return-value]

    return decorate
