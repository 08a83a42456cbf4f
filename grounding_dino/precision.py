"""The number format that models run in at inference (TEST.PRECISION)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from detectron2.config import CfgNode

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def precision_of(cfg: CfgNode) -> torch.dtype | None:
    """The format of autocast that TEST.PRECISION names; None for float32, without autocast.

    Raises:
        ValueError: it names none.
    """
    if cfg.TEST.PRECISION not in PRECISIONS:
        raise ValueError(f"unknown TEST.PRECISION {cfg.TEST.PRECISION!r}; choose from {sorted(PRECISIONS)}")
    return PRECISIONS[cfg.TEST.PRECISION]


def running_in(precision: torch.dtype | None, device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """A context in which models on `device` run in `precision`; None leaves them, and autocast, as they are."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, precision)
