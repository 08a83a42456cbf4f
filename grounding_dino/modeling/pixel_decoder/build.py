"""Registry of pixel decoders: what turns a feature pyramid (and text) into memory."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = "Modules `(FeaturePyramid, TextFeatures | None) -> (Memory, TextFeatures | None)`."


def build_pixel_decoder(cfg: CfgNode) -> nn.Module:
    """The pixel decoder that `MODEL.PIXEL_DECODER.NAME` names."""
    return PIXEL_DECODER_REGISTRY.get(cfg.MODEL.PIXEL_DECODER.NAME)(cfg)
