"""Losses and gradients that are not finite stop a training, by name, before they reach a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from grounding_dino.checkpoint.sharded import own_part

import torch
from torch import nn

MAX_NAMES = 5

_REMEDY = (
    "this step changed no weight, and the checkpoints written before it are good: look at these pictures, lower "
    "SOLVER.BASE_LR, or train in float32, then go on with --resume"
)


class NonFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite; the message names the tensors and the pictures."""


def check_losses(losses: Mapping[str, float], batch: Iterable[Mapping[str, Any]]) -> None:
    """Raise :class:`NonFiniteError` naming the losses that are not finite."""
    bad = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(f"{_some(bad)} on {pictures(batch)}; {_REMEDY}")


def check_gradients(norm: float, model: nn.Module, batch: Iterable[Mapping[str, Any]]) -> None:
    """Raise :class:`NonFiniteError` naming the parameters whose gradient, of total norm `norm`, is not finite."""
    if math.isfinite(norm):
        return
    named = [(n.removeprefix("module."), p.grad) for n, p in model.named_parameters() if p.grad is not None]
    # with split parameters by this process's part: another one may name other parameters, or none
    bad = [name for name, gradient in named if not torch.isfinite(own_part(gradient)).all()]
    names = _some(bad) if bad else "all parameters together"
    raise NonFiniteError(f"the gradient of {names} is not finite on {pictures(batch)}; {_REMEDY}")


def while_computing(error: FloatingPointError, batch: Iterable[Mapping[str, Any]]) -> NonFiniteError:
    """What a part of the model raised about its numbers, with the pictures it cannot know."""
    return NonFiniteError(f"{str(error).rstrip('.')} (on {pictures(batch)}); {_REMEDY}")


def pictures(batch: Iterable[Mapping[str, Any]]) -> str:
    """The pictures of a batch by id and file."""
    names = []
    for inputs in batch:
        known = [str(inputs[key]) for key in ("image_id", "file_name") if key in inputs]
        names.append(" ".join([known[0], *(f"({name})" for name in known[1:])]) if known else "without a name")
    return "pictures " + ", ".join(names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
