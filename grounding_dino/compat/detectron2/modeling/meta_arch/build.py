"""Registry of meta-architectures: whole models that take `batched_inputs`."""

from __future__ import annotations

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Models by name; each is called with the config and returns a ``torch.nn.Module``."


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model ``cfg.MODEL.META_ARCHITECTURE`` on ``cfg.MODEL.DEVICE``, without loading weights."""
    model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
