"""AdamW (or SGD) with learning rates and decay by parameter name, and frozen parts."""

from __future__ import annotations

import logging
import re
from collections import defaultdict

import torch
from detectron2.config import CfgNode
from torch import nn

logger = logging.getLogger(__name__)

OPTIMIZERS = ("ADAMW", "SGD")


def freeze_parameters(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Stop the gradient of every parameter that a pattern of `SOLVER.FREEZE` finds; their names."""
    frozen = []
    for pattern in cfg.SOLVER.FREEZE:
        names = [name for name, _ in model.named_parameters() if re.search(pattern, name)]
        if not names:
            raise ValueError(f"SOLVER.FREEZE has {pattern!r}, but no parameter's name matches it")
        frozen += names
    chosen = set(frozen)
    for name, parameter in model.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    if frozen:
        logger.info("frozen by SOLVER.FREEZE: %d tensors", len(chosen))
    return sorted(chosen)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """One group for each (learning rate, weight decay) that `SOLVER` gives to a trained parameter."""
    norms = tuple(getattr(nn, n) for n in ("LayerNorm", "GroupNorm", "BatchNorm2d", "SyncBatchNorm", "InstanceNorm2d"))
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            lr_factor, decay_factor = _factors(cfg, f"{prefix}.{leaf}" if prefix else leaf)
            decay = cfg.SOLVER.WEIGHT_DECAY
            if isinstance(module, norms):
                decay = cfg.SOLVER.WEIGHT_DECAY_NORM
            elif leaf == "bias" and cfg.SOLVER.WEIGHT_DECAY_BIAS is not None:
                decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
            groups[(cfg.SOLVER.BASE_LR * lr_factor, decay * decay_factor)].append(parameter)
    return [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in sorted(groups.items(), reverse=True)]


def _factors(cfg: CfgNode, name: str) -> tuple[float, float]:
    for pattern, lr_factor, decay_factor in cfg.SOLVER.PARAMETER_GROUPS:
        if re.search(pattern, name):
            return float(lr_factor), float(decay_factor)
    return 1.0, 1.0


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `SOLVER.OPTIMIZER` over the trained parameters; freezes what `SOLVER.FREEZE` names first."""
    freeze_parameters(cfg, model)
    groups = parameter_groups(cfg, model)
    if not groups:
        raise ValueError("SOLVER.FREEZE leaves no parameter to train")
    for group in groups:
        count = sum(p.numel() for p in group["params"])
        logger.info("lr %.3g, weight decay %.3g: %d tensors, %.2f M", group["lr"], group["weight_decay"],
                    len(group["params"]), count / 1e6)  # fmt: skip
    name = cfg.SOLVER.OPTIMIZER
    if name == "ADAMW":
        return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=True)
    if name == "SGD":
        return torch.optim.SGD(
            groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV
        )
    raise ValueError(f"unknown SOLVER.OPTIMIZER {name!r}; choose from {OPTIMIZERS}")
