"""Coping with a full GPU."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def retry_if_cuda_oom(func: Function) -> Function:
    """Wrap `func` so that, when GPU memory runs out, it is tried again after emptying the cache, then on the CPU.

    On the CPU its tensor arguments are copied there, so the result may come back on the CPU; `func` must be free of
    state that a failed call changes.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()
        try:
            return func(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            pass
        logging.getLogger(__name__).info("out of GPU memory in %s; trying on the CPU", getattr(func, "__name__", func))
        return func(*(_to_cpu(value) for value in args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped  # type: ignore[return-value]


def _to_cpu(value: Any) -> Any:
    """Only what says it lives on a GPU is copied."""
    device = getattr(value, "device", None)
    on_gpu = isinstance(device, torch.device) and device.type == "cuda"
    return value.to(device="cpu") if on_gpu and (isinstance(value, Tensor) or hasattr(value, "to")) else value
