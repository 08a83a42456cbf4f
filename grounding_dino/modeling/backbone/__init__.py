"""Entries of Detectron2's BACKBONE_REGISTRY; importing this package registers them."""

from grounding_dino.modeling.backbone.swin import SwinTransformer
from grounding_dino.modeling.backbone.timm_backbone import TimmBackbone

__all__ = ["SwinTransformer", "TimmBackbone"]
