"""Registries, builders, backbones and postprocessing."""

from detectron2.layers import ShapeSpec

from .backbone import (
    BACKBONE_REGISTRY,
    Backbone,
    ResNet,
    build_backbone,
    build_resnet_backbone,
)
from .meta_arch import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model, build_sem_seg_head
from .postprocessing import detector_postprocess

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "META_ARCH_REGISTRY",
    "ResNet",
    "SEM_SEG_HEADS_REGISTRY",
    "ShapeSpec",
    "build_backbone",
    "build_model",
    "build_resnet_backbone",
    "build_sem_seg_head",
    "detector_postprocess",
]
