"""Registry of heads that make dense predictions from feature maps."""

from __future__ import annotations

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = "Heads by name; each is called with the config and the shapes of the feature maps."


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the head ``cfg.MODEL.SEM_SEG_HEAD.NAME`` for feature maps of `input_shape`."""
    head: nn.Module = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)
    return head
