"""The deformable encoder over all levels, with text fusion where the model has text (Grounding DINO, section 3.1)."""

from __future__ import annotations

import dataclasses
from typing import Any

from grounding_dino.layers.blocks import FeedForward, block_of, in_blocks
from grounding_dino.layers.constants import kept_for_sizes
from grounding_dino.layers.ms_deform_attn import MSDeformAttn, layout_of_levels
from grounding_dino.layers.position_encoding import image_position_embedding
from grounding_dino.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY
from grounding_dino.modeling.pixel_decoder.mask_features import MaskFeatures
from grounding_dino.modeling.pixel_decoder.text_fusion import TextFusionLayer, TextLayer, text_position_embedding
from grounding_dino.structures import FeaturePyramid, Memory, TextFeatures

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ImageLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, post-norm (Deformable DETR)."""

    def __init__(
        self, embed_dim: int, num_levels: int, num_heads: int, num_points: int, ffn_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention = MSDeformAttn(embed_dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, position: Tensor, reference_points: Tensor, memory: Memory, padding_mask: Tensor | None
    ) -> Tensor:
        """`tokens` (B, S, C) are this layer's input; `memory` gives the layout of the levels."""
        value = self.self_attention.project(tokens, padding_mask)
        points = reference_points.flatten(2)  # rows of tokens, like the others
        if not block_of(tokens):
            return self._layer(tokens, position, points, value, memory)
        position, points = (x.expand(len(tokens), -1, -1) for x in (position, points))
        pictures = [self._in_blocks(*picture, memory) for picture in zip(tokens, position, points, value)]
        return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)

    def _in_blocks(self, tokens: Tensor, position: Tensor, points: Tensor, value: Tensor, memory: Memory) -> Tensor:
        """One picture (S, C), some of its tokens at a time."""

        def layer(*rows: Tensor) -> Tensor:
            tokens, position, points = (x[None] for x in rows)
            return self._layer(tokens, position, points, value[None], memory)[0]

        return in_blocks(layer, tokens, position, points)

    def _layer(self, tokens: Tensor, position: Tensor, points: Tensor, value: Tensor, memory: Memory) -> Tensor:
        """Of all tokens, or some: what they look at is `value`."""
        attended = self.self_attention.attend(
            tokens + position, points.unflatten(2, (-1, 2)), value, memory.spatial_shapes, memory.level_start_index
        )
        tokens = self.norm1(tokens + self.dropout(attended))
        return self.norm2(tokens + self.dropout(self.ffn(tokens)))


class EncoderLayer(nn.Module):
    """Fusion, then the text's layer, then the image's; the first two are None in models without text."""

    def __init__(self, image_layer: ImageLayer, fusion: TextFusionLayer | None, text_layer: TextLayer | None) -> None:
        super().__init__()
        self.fusion = fusion
        self.text_layer = text_layer
        self.image_layer = image_layer

    def forward(
        self,
        tokens: Tensor,
        text_tokens: Tensor | None,
        text: TextFeatures | None,
        text_position: Tensor | None,
        position: Tensor,
        reference_points: Tensor,
        memory: Memory,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`tokens` (B, S, C) and `text_tokens` (B, T, C) are this layer's input, and its output.

        `text` gives the text's masks, `text_position` (B, T, C) where its tokens stand, `memory` the layout of the
        levels, `position` (B, S, C) and `reference_points` (B, S, L, 2) the place of each image token.
        """
        if self.fusion is not None and text is not None:
            tokens, text_tokens = self.fusion(tokens, text_tokens, padding_mask, text.keys_padding_mask)
        if self.text_layer is not None and text is not None:
            text_tokens = self.text_layer(text_tokens, text.attention_mask, text_position)
        return self.image_layer(tokens, position, reference_points, memory, padding_mask), text_tokens


@PIXEL_DECODER_REGISTRY.register()
class DeformableEncoder(nn.Module):
    """Encode a feature pyramid (and text) into memory: `NUM_LAYERS` encoder layers over the tokens of all levels."""

    @configurable
    def __init__(
        self,
        *,
        layers: list[EncoderLayer],
        embed_dim: int,
        num_levels: int,
        position_temperature: float,
        mask_features: MaskFeatures | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.position_temperature = position_temperature
        self.activation_checkpointing = activation_checkpointing
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim))
        self.layers = nn.ModuleList(layers)
        self.mask_features = mask_features

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.PIXEL_DECODER; TEXT_ENCODER.NAME decides about text parts, MASK_ON about mask features."""
        decoder = cfg.MODEL.PIXEL_DECODER
        dim, has_text = cfg.MODEL.EMBED_DIM, bool(cfg.MODEL.TEXT_ENCODER.NAME)
        image_layer = (
            dim,
            decoder.NUM_FEATURE_LEVELS,
            decoder.NUM_HEADS,
            decoder.NUM_POINTS,
            decoder.FFN_DIM,
            decoder.DROPOUT,
        )
        layers = [
            EncoderLayer(
                ImageLayer(*image_layer),
                _build_fusion(cfg) if has_text else None,
                _build_text_layer(cfg) if has_text else None,
            )
            for _ in range(decoder.NUM_LAYERS)
        ]
        mask_features = None
        if cfg.MODEL.MASK_ON:
            mask_features = MaskFeatures(dim, cfg.MODEL.MASK_HEAD.EMBED_DIM, cfg.MODEL.PAD_BEFORE_BACKBONE_ON)
        return {
            "layers": layers,
            "embed_dim": dim,
            "num_levels": decoder.NUM_FEATURE_LEVELS,
            "position_temperature": decoder.POSITION_TEMPERATURE,
            "mask_features": mask_features,
            "activation_checkpointing": decoder.ACTIVATION_CHECKPOINTING_ON,
        }

    def forward(self, features: FeaturePyramid, text: TextFeatures | None) -> tuple[Memory, TextFeatures | None]:
        """Return the encoded image tokens (with mask features), and `text` with its encoded tokens."""
        memory = flatten_levels(features)
        position = self.position_embedding(features)
        reference_points = encoder_reference_points(memory)
        # without padding the masks are all False: leaving them out saves a pass and allows faster attention
        padding_mask = memory.padding_mask if memory.has_padding else None
        tokens, text_tokens, text_position = memory.features, None, None
        memory = dataclasses.replace(memory, features=tokens.new_empty(0))  # so that the first layer's input is freed
        if text is not None:
            text_tokens, text_position = text.embeddings, text_position_embedding(text)
        for layer in self.layers:
            inputs = (tokens, text_tokens, text, text_position, position, reference_points, memory, padding_mask)
            if self.activation_checkpointing and self.training:
                tokens, text_tokens = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                tokens, text_tokens = layer(*inputs)
        if text is not None and text_tokens is not None:
            text = dataclasses.replace(text, embeddings=text_tokens)
        memory = dataclasses.replace(memory, features=tokens)
        if self.mask_features is not None:
            maps = self.mask_features(features, memory)
            memory = dataclasses.replace(memory, mask_features=maps, mask_ratios=self.mask_features.ratios(features))
        return memory, text

    def position_embedding(self, features: FeaturePyramid) -> Tensor:
        """(B, S, C): the sine embedding of each token's place plus the learned embedding of its level.

        B is 1 where pictures have no padding, and so the same places.
        """
        options = (self.embed_dim, self.position_temperature)
        if features.has_padding:
            places = [image_position_embedding(mask, *options).flatten(1, 2) for mask in features.padding_masks]
        else:
            places = [_places(m.shape[-2], m.shape[-1], *options, m.device) for m in features.maps]
        levels = [place + level for place, level in zip(places, self.level_embed)]
        return torch.cat(levels, dim=1).to(features.maps[0].dtype)


@kept_for_sizes(16)  # four levels of four sizes
def _places(height: int, width: int, dim: int, temperature: float, device: torch.device) -> Tensor:
    """(1, h * w, dim): the position embedding of a map without padding."""
    no_padding = torch.zeros(1, height, width, dtype=torch.bool, device=device)
    return image_position_embedding(no_padding, dim, temperature).flatten(1, 2)


def _build_fusion(cfg: CfgNode) -> TextFusionLayer:
    fusion = cfg.MODEL.PIXEL_DECODER.TEXT_FUSION
    return TextFusionLayer(
        embed_dim=cfg.MODEL.EMBED_DIM,
        attention_dim=fusion.EMBED_DIM,
        num_heads=fusion.NUM_HEADS,
        dropout=fusion.DROPOUT,
        drop_path=fusion.DROP_PATH_RATE,
        init_scale=fusion.INIT_SCALE,
    )


def _build_text_layer(cfg: CfgNode) -> TextLayer:
    layer, dim = cfg.MODEL.PIXEL_DECODER.TEXT_LAYER, cfg.MODEL.EMBED_DIM
    return TextLayer(dim, layer.NUM_HEADS, FeedForward(dim, layer.FFN_DIM, layer.DROPOUT), layer.DROPOUT)


def flatten_levels(features: FeaturePyramid) -> Memory:
    """Lay the maps of a pyramid one behind the other as tokens."""
    sizes = tuple((m.shape[-2], m.shape[-1]) for m in features.maps)
    spatial_shapes, level_start_index = layout_of_levels(sizes, features.maps[0].device)
    return Memory(
        features=torch.cat([m.flatten(2).transpose(1, 2) for m in features.maps], dim=1),
        padding_mask=torch.cat([m.flatten(1) for m in features.padding_masks], dim=1),
        spatial_shapes=spatial_shapes,
        level_start_index=level_start_index,
        valid_ratios=torch.stack([_valid_ratio(m) for m in features.padding_masks], dim=1),
        has_padding=features.has_padding,
        fewest_tokens=features.fewest_tokens,
        sizes=sizes,
    )


def _valid_ratio(padding_mask: Tensor) -> Tensor:
    """(B, H, W) -> (B, 2): the share of columns and of rows that are not padding."""
    width = (~padding_mask[:, 0, :]).float().mean(1)
    height = (~padding_mask[:, :, 0]).float().mean(1)
    return torch.stack((width, height), dim=-1)


def encoder_reference_points(memory: Memory) -> Tensor:
    """(B, S, L, 2): each token's own centre, relative to the padded map of each level.

    B is 1 where pictures have no padding, and so the same points.
    """
    if not memory.has_padding:
        return _unpadded_points(memory.sizes, memory.valid_ratios.device)
    centres = [cell_centres(h, w, ratio) for (h, w), ratio in zip(memory.sizes, memory.valid_ratios.unbind(1))]
    return torch.cat(centres, dim=1)[:, :, None] * memory.valid_ratios[:, None]


@kept_for_sizes(4)
def _unpadded_points(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    whole = torch.ones(1, 2, device=device)
    centres = torch.cat([cell_centres(h, w, whole) for h, w in sizes], dim=1)
    return centres[:, :, None].expand(-1, -1, len(sizes), -1)


def cell_centres(height: int, width: int, valid_ratio: Tensor) -> Tensor:
    """(B, h * w, 2): centres of a level's cells in x and y, as a share of its valid part."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=valid_ratio.dtype, device=valid_ratio.device) + 0.5,
        torch.arange(width, dtype=valid_ratio.dtype, device=valid_ratio.device) + 0.5,
        indexing="ij",
    )
    centres = torch.stack((x.flatten(), y.flatten()), dim=-1)  # (h * w, 2)
    valid_size = valid_ratio * torch.tensor([width, height], dtype=valid_ratio.dtype, device=valid_ratio.device)
    return centres[None] / valid_size[:, None]
