"""Registry of transformer decoders: what turns queries and memory into predictions."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = "Modules `(Queries, Memory, TextFeatures | None) -> DecoderOutput`."


def build_transformer_decoder(cfg: CfgNode) -> nn.Module:
    """The decoder that `MODEL.TRANSFORMER_DECODER.NAME` names."""
    return TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.TRANSFORMER_DECODER.NAME)(cfg)
