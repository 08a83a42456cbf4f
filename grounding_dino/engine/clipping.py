"""Gradient clipping as SOLVER.CLIP_GRADIENTS asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from torch import Tensor, nn

Clip = Callable[[Sequence[nn.Parameter], Tensor], None]

CLIP_TYPES = ("full_model", "norm", "value")


def build_clipping(cfg: CfgNode) -> Clip | None:
    """A function of (parameters with gradients, their total norm) that clips in place; None where not enabled.

    "full_model" scales all gradients by one factor, so that their total norm is at most CLIP_VALUE (as the authors of
    this model family do); "norm" does so for each parameter apart, and "value" bounds each number, as in Detectron2.

    Raises:
        ValueError: an unknown type, or a value that is not positive.
    """
    options = cfg.SOLVER.CLIP_GRADIENTS
    if not options.ENABLED:
        return None
    value, norm_type = float(options.CLIP_VALUE), float(options.NORM_TYPE)
    if value <= 0:
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {value}; give a positive number, or ENABLED False")

    def full_model(parameters: Sequence[nn.Parameter], total_norm: Tensor) -> None:
        nn.utils.clip_grads_with_norm_(parameters, value, total_norm)

    def norm(parameters: Sequence[nn.Parameter], total_norm: Tensor) -> None:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, value, norm_type)

    def bound(parameters: Sequence[nn.Parameter], total_norm: Tensor) -> None:
        nn.utils.clip_grad_value_(parameters, value)

    functions: dict[str, Clip] = dict(zip(CLIP_TYPES, (full_model, norm, bound)))
    if options.CLIP_TYPE not in functions:
        raise ValueError(f"unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE {options.CLIP_TYPE!r}; choose from {CLIP_TYPES}")
    return functions[options.CLIP_TYPE]
