"""The decoder: queries look at each other, at the text and at the image, and refine their boxes layer by layer."""

from __future__ import annotations

from typing import Any

from grounding_dino.layers.blocks import MLP, FeedForward, MultiheadAttention, key_mask
from grounding_dino.layers.box_ops import inverse_sigmoid
from grounding_dino.layers.ms_deform_attn import MSDeformAttn
from grounding_dino.layers.position_encoding import box_position_embedding
from grounding_dino.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY
from grounding_dino.modeling.transformer_decoder.heads import build_box_head, build_class_head, build_mask_head
from grounding_dino.structures import DecoderOutput, Memory, Predictions, Queries, TextFeatures

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DecoderLayer(nn.Module):
    """Self-attention, attention to text (None in models without), deformable attention to the image, feed-forward."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        cross_attention: MSDeformAttn,
        text_attention: MultiheadAttention | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = MultiheadAttention(embed_dim, num_heads, dropout)
        self.norm_self = nn.LayerNorm(embed_dim)
        self.text_attention = text_attention
        self.norm_text = nn.LayerNorm(embed_dim) if text_attention is not None else None
        self.cross_attention = cross_attention
        self.norm_cross = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout)
        self.norm_ffn = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference_points: Tensor,
        memory: Memory,
        text: TextFeatures | None,
        attention_mask: Tensor | None,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """`queries`, `position` (B, Q, C); `reference_points` (B, Q, L, 4); `padding_mask` (B, S) of the memory."""
        query = queries + position
        attended = self.self_attention(query, query, queries, attention_mask)
        queries = self.norm_self(queries + self.dropout(attended))
        if self.text_attention is not None and self.norm_text is not None and text is not None:
            mask = None if text.keys_padding_mask is None else key_mask(text.keys_padding_mask)
            attended = self.text_attention(queries + position, text.embeddings, text.embeddings, mask)
            queries = self.norm_text(queries + self.dropout(attended))
        attended = self.cross_attention(
            queries + position,
            reference_points,
            memory.features,
            memory.spatial_shapes,
            memory.level_start_index,
            padding_mask,
        )
        queries = self.norm_cross(queries + self.dropout(attended))
        return self.norm_ffn(queries + self.dropout(self.ffn(queries)))


@TRANSFORMER_DECODER_REGISTRY.register()
class DINODecoder(nn.Module):
    """Decoder with iterative box refinement and look forward twice (DINO, section 3.5).

    `box_heads` and `class_heads` hold one head, used by every layer, or one a layer; there is one mask head at most.
    """

    @configurable
    def __init__(
        self,
        *,
        layers: list[DecoderLayer],
        embed_dim: int,
        box_heads: list[MLP],
        class_heads: list[nn.Module],
        reference_eps: float,
        box_eps: float,
        mask_head: MLP | None = None,
        initial_prediction: bool = False,
        norm_before_heads: bool = False,
        padded_positions: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        """
        Args:
            reference_eps: of the inverse sigmoid that refines references.
            box_eps: of the inverse sigmoid behind predicted boxes.
            mask_head: None for boxes alone.
            initial_prediction: predict from the queries, before the first layer, too.
            norm_before_heads: norm what enters the class and mask heads once more (Mask DINO).
            padded_positions: embed boxes relative to the padded batch at inference too, as the published code does.
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.padded_positions = padded_positions
        self.reference_eps = reference_eps
        self.box_eps = box_eps
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(embed_dim)
        self.reference_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        self.box_heads = nn.ModuleList(box_heads)
        self.class_heads = nn.ModuleList(class_heads)
        self.mask_head = mask_head
        self.initial_prediction = initial_prediction
        self.norm_before_heads = norm_before_heads

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.TRANSFORMER_DECODER; the layers attend to text where MODEL.TEXT_ENCODER.NAME is set."""
        decoder, dim = cfg.MODEL.TRANSFORMER_DECODER, cfg.MODEL.EMBED_DIM
        levels = cfg.MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS
        has_text = bool(cfg.MODEL.TEXT_ENCODER.NAME)
        layers = [
            DecoderLayer(
                embed_dim=dim,
                num_heads=decoder.NUM_HEADS,
                ffn_dim=decoder.FFN_DIM,
                cross_attention=MSDeformAttn(dim, levels, decoder.NUM_HEADS, decoder.NUM_POINTS),
                text_attention=MultiheadAttention(dim, decoder.NUM_HEADS, decoder.DROPOUT) if has_text else None,
                dropout=decoder.DROPOUT,
            )
            for _ in range(decoder.NUM_LAYERS)
        ]
        return {
            "layers": layers,
            "embed_dim": dim,
            "box_heads": [build_box_head(dim) for _ in range(1 if decoder.SHARED_BOX_HEAD_ON else decoder.NUM_LAYERS)],
            "class_heads": [
                build_class_head(cfg) for _ in range(1 if cfg.MODEL.CLASS_HEAD.SHARED_ON else decoder.NUM_LAYERS)
            ],
            "mask_head": build_mask_head(dim, cfg.MODEL.MASK_HEAD.EMBED_DIM) if cfg.MODEL.MASK_ON else None,
            "initial_prediction": decoder.INITIAL_PREDICTION_ON,
            "norm_before_heads": decoder.NORM_BEFORE_HEADS_ON,
            "reference_eps": decoder.REFERENCE_EPS,
            "box_eps": decoder.BOX_EPS,
            "padded_positions": cfg.MODEL.PAD_BEFORE_BACKBONE_ON,
            "activation_checkpointing": decoder.ACTIVATION_CHECKPOINTING_ON,
        }

    def forward(
        self, queries: Queries, memory: Memory, text: TextFeatures | None, all_layers: bool = True
    ) -> DecoderOutput:
        """Predictions of each layer; of the last alone where the others are not wanted (`all_layers=False`)."""
        states, references = self.refine(queries, memory, text)
        first = 0 if all_layers else len(states) - 1
        predictions = [
            self.predict(layer, states[layer], references[layer], queries, memory, text)
            for layer in range(first, len(states))
        ]
        if self.initial_prediction and all_layers:
            logits, masks = self.class_and_mask(0, queries.content, memory, text)
            predictions.insert(0, Predictions(logits, queries.reference_points, masks))
        if not queries.num_denoising:
            return DecoderOutput(layers=predictions)
        return DecoderOutput(
            layers=[_part(p, slice(queries.num_denoising, None)) for p in predictions],
            denoising=[_part(p, slice(queries.num_denoising)) for p in predictions],
        )

    def refine(self, queries: Queries, memory: Memory, text: TextFeatures | None) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layers: normed states (B, Q, C) of each, and the references (B, Q, 4) that entered it."""
        content, reference = queries.content, queries.reference_points
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        attention_mask = _attention_mask(queries)
        padding_mask = memory.padding_mask if memory.has_padding else None
        states, references = [], [reference]
        # relative to the picture itself, a box has the same position in every batch
        padded = self.training or self.padded_positions
        for i, layer in enumerate(self.layers):
            level_references = reference[:, :, None] * ratios  # (B, Q, L, 4)
            embedding = box_position_embedding(level_references[:, :, 0] if padded else reference, self.embed_dim // 2)
            position = self.reference_head(embedding.to(content.dtype))
            inputs = (content, position, level_references, memory, text, attention_mask, padding_mask)
            if self.activation_checkpointing and self.training:
                content = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                content = layer(*inputs)
            states.append(self.norm(content))
            delta = self.box_head(i)(content).to(reference.dtype)
            refined = (delta + inverse_sigmoid(reference.detach(), self.reference_eps)).sigmoid()
            references.append(refined)
            reference = refined.detach()  # the first ones, if learned, learn from the first layer
        return states, references

    def predict(
        self,
        layer: int,
        state: Tensor,
        reference: Tensor,
        queries: Queries,
        memory: Memory,
        text: TextFeatures | None,
    ) -> Predictions:
        """Logits, boxes and masks of one layer from its normed state and the reference that entered it."""
        logits, masks = self.class_and_mask(layer, state, memory, text)
        if queries.padding_mask is not None:
            logits = logits.masked_fill(queries.padding_mask[..., None], float("-inf"))
        delta = self.box_head(layer)(state).to(reference.dtype)
        return Predictions(logits, (delta + inverse_sigmoid(reference, self.box_eps)).sigmoid(), masks)

    def class_and_mask(
        self, layer: int, state: Tensor, memory: Memory, text: TextFeatures | None
    ) -> tuple[Tensor, Tensor | None]:
        """Class logits (B, Q, K) and mask logits (B, Q, h, w), None without a mask head, of states (B, Q, C)."""
        state = self.norm(state) if self.norm_before_heads else state
        logits = self.class_head(layer)(state, text)
        if self.mask_head is None or memory.mask_features is None:
            return logits, None
        return logits, torch.einsum("bqc,bchw->bqhw", self.mask_head(state), memory.mask_features)

    def box_head(self, layer: int) -> nn.Module:
        """The box head of a layer."""
        return self.box_heads[min(layer, len(self.box_heads) - 1)]

    def class_head(self, layer: int) -> nn.Module:
        """The class head of a layer."""
        return self.class_heads[min(layer, len(self.class_heads) - 1)]


def _attention_mask(queries: Queries) -> Tensor | None:
    """What self-attention may see: the denoising mask (Q, Q), or the queries that are no padding (B, 1, 1, Q)."""
    if queries.attention_mask is None:
        return None if queries.padding_mask is None else key_mask(queries.padding_mask)
    if queries.padding_mask is not None:
        raise ValueError("queries cannot have denoising parts and padding at once: padding exists at inference only")
    return queries.attention_mask


def _part(predictions: Predictions, queries: slice) -> Predictions:
    masks = predictions.pred_masks
    return Predictions(
        predictions.pred_logits[:, queries],
        predictions.pred_boxes[:, queries],
        None if masks is None else masks[:, queries],
    )


def prepend_denoising(queries: Queries, content: Tensor, reference_points: Tensor, attention_mask: Tensor) -> Queries:
    """`queries` with denoising queries (B, D, .) in front and the mask (D + Q, D + Q) that keeps them apart."""
    return Queries(
        content=torch.cat((content.to(queries.content.dtype), queries.content), dim=1),
        reference_points=torch.cat((reference_points, queries.reference_points), dim=1),
        attention_mask=attention_mask,
        num_denoising=content.shape[1],
    )
