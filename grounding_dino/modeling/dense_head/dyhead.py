"""The tower of GLIP: dynamic convolutions, with image and text fused before each (GLIP, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.layers.blocks import FeedForward
from grounding_dino.modeling.dense_head.dynamic_conv import DynamicConv
from grounding_dino.modeling.pixel_decoder.text_fusion import TextFusionLayer, TextLayer
from grounding_dino.structures import TextFeatures

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DyHeadBlock(nn.Module):
    """Fusion, then the text's layer, then the maps' convolution; without deep fusion the first two are None."""

    def __init__(self, convolution: DynamicConv, fusion: TextFusionLayer | None, text_layer: TextLayer | None) -> None:
        super().__init__()
        self.fusion = fusion
        self.text_layer = text_layer
        self.convolution = convolution

    def forward(self, tokens: Tensor, text: TextFeatures, *maps: Tensor) -> tuple[Tensor, ...]:
        """`tokens` (B, T, text channels) and `maps` L x (B, C, h, w) -> the same, tokens first.

        `text` gives the masks. Padding of pictures is not masked, as in the published models.
        """
        levels = list(maps)
        if self.fusion is not None:
            levels, tokens = self.fuse(levels, tokens, text)
        if self.text_layer is not None:
            tokens = self.text_layer(tokens, text.attention_mask)
        return tokens, *self.convolution(levels)

    def fuse(self, maps: Sequence[Tensor], tokens: Tensor, text: TextFeatures) -> tuple[list[Tensor], Tensor]:
        """All levels at once and the text, each informed by the other."""
        assert self.fusion is not None
        sizes = [m.shape[-2:] for m in maps]
        image = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, S, C)
        image, tokens = self.fusion(image, tokens, None, text.keys_padding_mask)
        levels = image.transpose(1, 2).split([h * w for h, w in sizes], dim=2)
        return [level.unflatten(2, tuple(size)) for level, size in zip(levels, sizes)], tokens


class DyHead(nn.Module):
    """`NUM_BLOCKS` blocks over a pyramid and a text."""

    @configurable
    def __init__(self, *, blocks: list[DyHeadBlock], activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.activation_checkpointing = activation_checkpointing

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.DENSE_HEAD; the text layers have the sizes of MODEL.TEXT_ENCODER's."""
        head, text, dim = cfg.MODEL.DENSE_HEAD, cfg.MODEL.TEXT_ENCODER, cfg.MODEL.EMBED_DIM
        fusion = head.TEXT_FUSION

        def block() -> DyHeadBlock:
            convolution = DynamicConv(dim, head.NUM_GROUPS)
            if not fusion.ENABLED_ON:
                return DyHeadBlock(convolution, None, None)
            fusion_layer = TextFusionLayer(
                embed_dim=dim,
                text_dim=text.HIDDEN_SIZE,
                attention_dim=fusion.EMBED_DIM,
                num_heads=fusion.NUM_HEADS,
                dropout=fusion.DROPOUT,
                drop_path=fusion.DROP_PATH_RATE,
                init_scale=fusion.INIT_SCALE,
            )
            feed_forward = FeedForward(text.HIDDEN_SIZE, text.FFN_DIM, activation="gelu")
            text_layer = TextLayer(text.HIDDEN_SIZE, text.NUM_HEADS, feed_forward, text.DROPOUT, norm_eps=1e-12)
            return DyHeadBlock(convolution, fusion_layer, text_layer)

        return {
            "blocks": [block() for _ in range(head.NUM_BLOCKS)],
            "activation_checkpointing": head.ACTIVATION_CHECKPOINTING_ON,
        }

    def forward(self, maps: Sequence[Tensor], text: TextFeatures) -> tuple[list[Tensor], Tensor]:
        """`maps` L x (B, C, h, w), finest first -> the maps, and the text's tokens (B, T, text channels)."""
        tokens, levels = text.embeddings, list(maps)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                tokens, *levels = checkpoint(block, tokens, text, *levels, use_reentrant=False)
            else:
                tokens, *levels = block(tokens, text, *levels)
        return levels, tokens
