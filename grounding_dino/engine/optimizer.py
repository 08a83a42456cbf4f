"""AdamW (or SGD) with learning rates and decay by parameter name, and frozen parts."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from grounding_dino.checkpoint.adapters import is_of_adapter
from grounding_dino.engine.layer_decay import layer_factors

import torch
from detectron2.config import CfgNode
from torch import nn

logger = logging.getLogger(__name__)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

Groups = list[dict[str, Any]]


def _adamw(cfg: CfgNode, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=True)


def _sgd(cfg: CfgNode, groups: Groups) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


OPTIMIZERS: dict[str, Callable[[CfgNode, Groups], torch.optim.Optimizer]] = {"ADAMW": _adamw, "SGD": _sgd}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `SOLVER.OPTIMIZER` over the trained parameters; freezes what `SOLVER.FREEZE` names first.

    Raises:
        ValueError: an unknown optimizer, a pattern that fits no parameter, or nothing left to train.
    """
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(f"unknown SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r}; choose from {sorted(OPTIMIZERS)}")
    freeze_parameters(cfg, model)
    groups = parameter_groups(cfg, model)
    if not groups:
        raise ValueError("SOLVER.FREEZE leaves no parameter to train")
    for group in groups:
        count = sum(p.numel() for p in group["params"]) / 1e6
        where = f"lr {group['lr']:.3g}, weight decay {group['weight_decay']:.3g}"
        logger.info("%s: %d tensors, %.2f M parameters", where, len(group["params"]), count)
    return OPTIMIZERS[cfg.SOLVER.OPTIMIZER](cfg, groups)


def freeze_parameters(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Stop the gradient of every parameter that a pattern of `SOLVER.FREEZE` finds; their names.

    A frozen parameter keeps its value bit for bit: it is in no optimizer, so decay does not move it either.

    Raises:
        ValueError: a pattern that is no regular expression, or that finds no parameter, or one of an adapter.
    """
    parameters = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in cfg.SOLVER.FREEZE:
        names = [name for name in parameters if _finds("SOLVER.FREEZE", pattern, name)]
        if not names:
            raise ValueError(f"SOLVER.FREEZE has {pattern!r}, but no parameter's name matches it")
        adapters = [name for name in names if is_of_adapter(name)]
        if adapters:
            raise ValueError(
                f"SOLVER.FREEZE has {pattern!r}, which finds {adapters[0]} of an adapter (MODEL.LORA); adapters freeze "
                "the rest of the model, so leave the pattern out, or name other layers in MODEL.LORA.TARGETS"
            )
        frozen.update(names)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen:
        logger.info("frozen by SOLVER.FREEZE: %d of %d tensors", len(frozen), len(parameters))
    return sorted(frozen)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> Groups:
    """One group for each (learning rate, weight decay) that `SOLVER` gives to a trained parameter.

    Raises:
        ValueError: an entry of SOLVER.PARAMETER_GROUPS that is none, or whose pattern is no regular expression.
    """
    _check_patterns(cfg, [name for name, _ in model.named_parameters()])
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    by_layer = layer_factors(cfg, model)
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            name = f"{prefix}.{leaf}" if prefix else leaf
            lr_factor, decay_factor = _factors(cfg, name)
            lr_factor *= by_layer.get(name, 1.0)
            decay = cfg.SOLVER.WEIGHT_DECAY
            if leaf == "bias":
                lr_factor *= cfg.SOLVER.BIAS_LR_FACTOR
            if isinstance(module, NORMS):
                decay = cfg.SOLVER.WEIGHT_DECAY_NORM
            elif leaf == "bias" and cfg.SOLVER.WEIGHT_DECAY_BIAS is not None:
                decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
            groups[(cfg.SOLVER.BASE_LR * lr_factor, decay * decay_factor)].append(parameter)
    ordered = sorted(groups, reverse=True)
    return [{"params": groups[lr, decay], "lr": lr, "weight_decay": decay} for lr, decay in ordered]


def _check_patterns(cfg: CfgNode, names: list[str]) -> None:
    for entry in cfg.SOLVER.PARAMETER_GROUPS:
        if not isinstance(entry, (list, tuple)) or [type(part) in (int, float) for part in entry] != [
            False,
            True,
            True,
        ]:
            raise ValueError(
                f"SOLVER.PARAMETER_GROUPS has {entry!r}; an entry is [pattern, learning-rate multiplier, decay "
                "multiplier], such as ['^backbone', 0.1, 1.0]"
            )
        if not any(_finds("SOLVER.PARAMETER_GROUPS", entry[0], name) for name in names):
            logger.warning("SOLVER.PARAMETER_GROUPS has %r, but no parameter's name matches it", entry[0])


def check_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """See that `optimizer` can take up the state of another run's, and warn where its rates differ, which then hold.

    Raises:
        ValueError: it is of another kind, or of other parameters.
    """
    sizes, kinds = [], []
    for groups in (state["param_groups"], optimizer.param_groups):
        sizes.append([len(group["params"]) for group in groups])
        kinds.append({"betas", "momentum"} & groups[0].keys())
    if sizes[0] != sizes[1] or kinds[0] != kinds[1]:
        raise ValueError(
            f"the checkpoint is of a run with another optimizer or other parameters to train (groups of {sizes[0]} "
            f"tensors, now {sizes[1]}): to go on keep SOLVER.OPTIMIZER, FREEZE, PARAMETER_GROUPS and LAYER_DECAY, "
            "MODEL.LORA and MODEL.TEXT_ENCODER.FREEZE_ON as they were; else start a new run from its weights "
            "(MODEL.WEIGHTS, another OUTPUT_DIR)"
        )
    rates = []
    for groups in (state["param_groups"], optimizer.param_groups):
        rates.append([(group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in groups])
    if rates[0] != rates[1]:
        logger.warning(
            "the run goes on with the learning rates and weight decays of its checkpoint, %s, not with the %s that the "
            "configuration asks for; for those start a new run from its weights (MODEL.WEIGHTS, another OUTPUT_DIR)",
            *rates,
        )


def _factors(cfg: CfgNode, name: str) -> tuple[float, float]:
    for pattern, lr_factor, decay_factor in cfg.SOLVER.PARAMETER_GROUPS:
        if _finds("SOLVER.PARAMETER_GROUPS", pattern, name):
            return float(lr_factor), float(decay_factor)
    return 1.0, 1.0


def _finds(key: str, pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{key} has {pattern!r}, which is no regular expression: {error}") from error
