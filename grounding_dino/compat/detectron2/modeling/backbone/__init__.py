"""Backbones: pictures to multi-scale feature maps."""

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .resnet import BasicStem, ResNet, build_resnet_backbone, make_stage

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "BasicStem",
    "ResNet",
    "build_backbone",
    "build_resnet_backbone",
    "make_stage",
]
