"""Grounding DINO and MM-Grounding-DINO as Hugging Face's `transformers` writes them to disk.

The names on disk are those of its first releases; 5.x renames Swin's in memory only. Both are read, the first is
written. Heads shared by all decoder layers are written once.
"""

from __future__ import annotations

from grounding_dino.checkpoint.rules import FIRST_COPY, ROWS, VECTOR_TO_SCALAR, Rule, Table
from grounding_dino.checkpoint.tables.backbones import swin_huggingface
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS, bert

_FUSION_ATTENTION = {
    "query_image": "vision_proj",
    "key_text": "text_proj",
    "value_image": "values_vision_proj",
    "value_text": "values_text_proj",
    "out_image": "out_vision_proj",
    "out_text": "out_text_proj",
}


def _attention(ours: str, theirs: str) -> list[Rule]:
    parts = tuple(f"{theirs}.{word}.{{p}}" for word in ("query", "key", "value"))
    return [Rule(f"{ours}.in_proj.{{p}}", parts, ROWS), Rule(f"{ours}.out_proj.{{p}}", f"{theirs}.out_proj.{{p}}")]


def _encoder() -> list[Rule]:
    ours, theirs = "pixel_decoder.layers.{i}.", "model.encoder.layers.{i}."
    words = {
        "fusion.norm_image": "fusion_layer.layer_norm_vision",
        "fusion.norm_text": "fusion_layer.layer_norm_text",
        **{f"fusion.attention.{a}": f"fusion_layer.attn.{b}" for a, b in _FUSION_ATTENTION.items()},
        "text_layer.norm1": "text_enhancer_layer.layer_norm_before",
        "text_layer.ffn.0": "text_enhancer_layer.fc1",
        "text_layer.ffn.2": "text_enhancer_layer.fc2",
        "text_layer.norm2": "text_enhancer_layer.layer_norm_after",
        "image_layer.norm1": "deformable_layer.self_attn_layer_norm",
        "image_layer.ffn.0": "deformable_layer.fc1",
        "image_layer.ffn.2": "deformable_layer.fc2",
        "image_layer.norm2": "deformable_layer.final_layer_norm",
    }
    return [
        Rule("pixel_decoder.level_embed", "model.level_embed"),
        Rule(f"{ours}fusion.gamma_image", f"{theirs}fusion_layer.vision_param"),
        Rule(f"{ours}fusion.gamma_text", f"{theirs}fusion_layer.text_param"),
        *(Rule(f"{ours}{a}.{{p}}", f"{theirs}{b}.{{p}}") for a, b in words.items()),
        *_attention(f"{ours}text_layer.self_attention", f"{theirs}text_enhancer_layer.self_attn"),
        Rule(f"{ours}image_layer.self_attention.{{rest}}", f"{theirs}deformable_layer.self_attn.{{rest}}"),
    ]


def _decoder() -> list[Rule]:
    ours, theirs = "transformer_decoder.layers.{i}.", "model.decoder.layers.{i}."
    words = {
        "norm_self": "self_attn_layer_norm",
        "norm_text": "encoder_attn_text_layer_norm",
        "norm_cross": "encoder_attn_layer_norm",
        "norm_ffn": "final_layer_norm",
        "ffn.0": "fc1",
        "ffn.2": "fc2",
    }
    return [
        *_attention(f"{ours}self_attention", f"{theirs}self_attn"),
        *_attention(f"{ours}text_attention", f"{theirs}encoder_attn_text"),
        Rule(f"{ours}cross_attention.{{rest}}", f"{theirs}encoder_attn.{{rest}}"),
        *(Rule(f"{ours}{a}.{{p}}", f"{theirs}{b}.{{p}}") for a, b in words.items()),
        Rule("transformer_decoder.norm.{p}", "model.decoder.layer_norm.{p}"),
        Rule("transformer_decoder.reference_head.{rest}", "model.decoder.reference_points_head.{rest}"),
    ]


def _heads() -> list[Rule]:
    # The decoder names the same heads once more; .bin files hold both names.
    boxes, bias = "bbox_embed.{i}.layers.{j}.{p}", "class_embed.{i}.bias"
    return [
        Rule(BOX_HEADS + "{i}.layers.{j}.{p}", (boxes, f"model.decoder.{boxes}"), FIRST_COPY),
        Rule(CLASS_HEADS + "{i}.bias", (bias, f"model.decoder.{bias}"), VECTOR_TO_SCALAR),
        Rule("query_selection.class_head.bias", "model.encoder_output_class_embed.bias", VECTOR_TO_SCALAR),
        Rule("query_selection.box_head.{rest}", "model.encoder_output_bbox_embed.{rest}"),
    ]


def table(num_layers: int) -> Table:
    """The rules of a model with `num_layers` decoder layers."""
    rules = [
        *swin_huggingface("model.backbone.conv_encoder.model."),
        Rule("input_projection.{i}.{j}.{p}", "model.input_proj_vision.{i}.{j}.{p}"),
        *bert("model.text_backbone."),
        Rule("text_encoder.projection.{p}", "model.text_projection.{p}"),
        *_encoder(),
        Rule("query_selection.projection.{p}", "model.enc_output.{p}"),
        Rule("query_selection.norm.{p}", "model.enc_output_norm.{p}"),
        Rule("query_selection.content.{p}", "model.query_position_embeddings.{p}"),
        *_decoder(),
        *_heads(),
    ]
    return Table(tuple(rules), num_layers=num_layers)
