"""Optimizer, gradient clipping and schedule from ``cfg.SOLVER``."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import Tensor, nn

from detectron2.config import CfgNode

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

Clipper = Callable[[Iterable[Tensor]], Any]


class GradientClipType(Enum):
    """Values of ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``; both clip each parameter by itself."""

    VALUE = "value"
    NORM = "norm"


def _create_gradient_clipper(cfg: CfgNode) -> Clipper:
    """Build the clipping function from ``cfg.SOLVER.CLIP_GRADIENTS``."""
    cfg = copy.deepcopy(cfg)
    if GradientClipType(cfg.CLIP_TYPE) is GradientClipType.VALUE:
        return lambda parameters: nn.utils.clip_grad_value_(parameters, cfg.CLIP_VALUE)
    return lambda parameters: nn.utils.clip_grad_norm_(parameters, cfg.CLIP_VALUE, cfg.NORM_TYPE)


def _with_clipping(optimizer: type[torch.optim.Optimizer], clipper: Clipper) -> type[torch.optim.Optimizer]:
    """Derive an optimizer class that clips the gradients of each parameter before it steps."""

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                clipper([parameter])
        return optimizer.step(self, closure)

    return type(optimizer.__name__ + "WithGradientClip", (optimizer,), {"step": step})


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Make an optimizer (class or object) clip gradients if ``cfg.SOLVER.CLIP_GRADIENTS.ENABLED``.

    A class gives a class; an object is changed and returned.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_object = isinstance(optimizer, torch.optim.Optimizer)
    base: type[torch.optim.Optimizer] = type(optimizer) if is_object else optimizer  # type: ignore[assignment]
    clipped = _with_clipping(base, _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS))
    if not is_object:
        return clipped
    optimizer.__class__ = clipped  # type: ignore[assignment]
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD with momentum from ``cfg.SOLVER``."""
    solver = cfg.SOLVER
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        parameters,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)  # type: ignore[arg-type, return-value]


_NORM_TYPES = (
    nn.modules.batchnorm._BatchNorm,  # includes SyncBatchNorm
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of `model` by their optimizer settings, each parameter once.

    Args:
        base_lr, weight_decay: for all; left to the optimizer where None.
        weight_decay_norm: for the parameters of normalisation layers.
        bias_lr_factor, weight_decay_bias: for parameters named "bias"; another factor than 1 needs `base_lr`.
        lr_factor_func: from a parameter's full name to a factor on `base_lr`, which is then needed.
        overrides: from a parameter's last name ("embedding") to settings that replace the others.
    """
    defaults = {name: value for name, value in (("lr", base_lr), ("weight_decay", weight_decay)) if value is not None}
    bias_settings: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor needs base_lr; pass both")
        bias_settings["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_settings["weight_decay"] = weight_decay_bias
    overrides = dict(overrides or {})
    if bias_settings:
        if "bias" in overrides:
            raise ValueError(
                "settings of 'bias' are given both in overrides and by bias_lr_factor or weight_decay_bias"
            )
        overrides["bias"] = bias_settings
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr; pass both")

    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings = dict(defaults)
            if isinstance(module, _NORM_TYPES) and weight_decay_norm is not None:
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameter groups of equal settings; multi-tensor optimizers are slow on many small groups."""
    merged: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = defaultdict(list)
    for group in params:
        settings = tuple((name, value) for name, value in group.items() if name != "params")
        merged[settings].extend(group["params"])
    return [{**dict(settings), "params": parameters} for settings, parameters in merged.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule ``cfg.SOLVER.LR_SCHEDULER_NAME``, stepped once an iteration.

    WarmupMultiStepLR multiplies by GAMMA at STEPS, WarmupCosineLR falls to BASE_LR_END along a cosine,
    WarmupStepWithFixedGammaLR multiplies by GAMMA in NUM_DECAYS equal steps.
    """
    solver = cfg.SOLVER
    multiplier: ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS beyond SOLVER.MAX_ITER %d are ignored: %s", solver.MAX_ITER, list(solver.STEPS)
            )
        values = [solver.GAMMA**count for count in range(len(steps) + 1)]
        multiplier = MultiStepParamScheduler(values=values, milestones=steps, num_updates=solver.MAX_ITER)
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        if not 0.0 <= end <= 1.0:
            raise ValueError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must lie between 0 and BASE_LR {solver.BASE_LR}")
        multiplier = CosineParamScheduler(1, end)
    elif solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        # As milestones, because fvcore's StepWithFixedGammaParamScheduler fails in the step after the last iteration.
        intervals = solver.NUM_DECAYS + 1
        milestones = [math.ceil(count * solver.MAX_ITER / intervals) for count in range(1, intervals)]
        values = [solver.GAMMA**count for count in range(intervals)]
        multiplier = MultiStepParamScheduler(values=values, milestones=milestones, num_updates=solver.MAX_ITER)
    else:
        raise ValueError(
            f"unknown SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r}; choose WarmupMultiStepLR, WarmupCosineLR "
            "or WarmupStepWithFixedGammaLR"
        )
    warmed_up = WarmupParamScheduler(
        multiplier,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=warmed_up, max_iter=solver.MAX_ITER)
