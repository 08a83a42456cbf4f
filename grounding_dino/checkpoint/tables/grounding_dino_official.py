"""Grounding DINO as its authors name it (files with the key `model` and the prefix `module.`)."""

from __future__ import annotations

from grounding_dino.checkpoint.rules import COPIES, Rule, Table
from grounding_dino.checkpoint.tables.backbones import resnet, swin_official

FUSION_ATTENTION = {  # ours -> the authors' word, which mmdet shares
    "query_image": "v_proj",
    "key_text": "l_proj",
    "value_image": "values_v_proj",
    "value_text": "values_l_proj",
    "out_image": "out_v_proj",
    "out_text": "out_l_proj",
}
BOX_HEADS = "transformer_decoder.box_heads."
CLASS_HEADS = "transformer_decoder.class_heads."


def fusion(theirs: str, ours: str = "pixel_decoder.layers.{i}.fusion.") -> list[Rule]:
    """Bi-attention blocks under the prefixes `theirs` and `ours`."""
    return [
        Rule(f"{ours}norm_image.{{p}}", f"{theirs}layer_norm_v.{{p}}"),
        Rule(f"{ours}norm_text.{{p}}", f"{theirs}layer_norm_l.{{p}}"),
        Rule(f"{ours}gamma_image", f"{theirs}gamma_v"),
        Rule(f"{ours}gamma_text", f"{theirs}gamma_l"),
        *(Rule(f"{ours}attention.{a}.{{p}}", f"{theirs}attn.{b}.{{p}}") for a, b in FUSION_ATTENTION.items()),
    ]


def attention(ours: str, theirs: str) -> list[Rule]:
    """torch's multi-head attention."""
    return [
        Rule(f"{ours}.in_proj.{{p}}", f"{theirs}.in_proj_{{p}}"),
        Rule(f"{ours}.out_proj.{{p}}", f"{theirs}.out_proj.{{p}}"),
    ]


def bert(theirs: str) -> list[Rule]:
    """BERT under the prefix `theirs`: its pooler and its position counter are in files, but used by nobody."""
    ours = "text_encoder.bert."
    return [
        Rule(f"{ours}pooler.{{rest}}", f"{theirs}pooler.{{rest}}", carried=True),
        Rule(f"{ours}embeddings.position_ids", f"{theirs}embeddings.position_ids", carried=True),
        Rule(f"{ours}{{rest}}", f"{theirs}{{rest}}"),
    ]


def _encoder() -> list[Rule]:
    text, image = "pixel_decoder.layers.{i}.text_layer.", "pixel_decoder.layers.{i}.image_layer."
    their_text, their_image = "transformer.encoder.text_layers.{i}.", "transformer.encoder.layers.{i}."
    rules = [*fusion("transformer.encoder.fusion_layers.{i}.")]
    rules += attention(f"{text}self_attention", f"{their_text}self_attn")
    rules.append(Rule(f"{image}self_attention.{{rest}}", f"{their_image}self_attn.{{rest}}"))
    for ours, theirs in ((text, their_text), (image, their_image)):
        rules += [
            Rule(f"{ours}norm1.{{p}}", f"{theirs}norm1.{{p}}"),
            Rule(f"{ours}ffn.0.{{p}}", f"{theirs}linear1.{{p}}"),
            Rule(f"{ours}ffn.2.{{p}}", f"{theirs}linear2.{{p}}"),
            Rule(f"{ours}norm2.{{p}}", f"{theirs}norm2.{{p}}"),
        ]
    return [Rule("pixel_decoder.level_embed", "transformer.level_embed"), *rules]


def _decoder() -> list[Rule]:
    ours, theirs = "transformer_decoder.layers.{i}.", "transformer.decoder.layers.{i}."
    words = {
        "norm_self": "norm2",
        "norm_text": "catext_norm",
        "norm_cross": "norm1",
        "norm_ffn": "norm3",
        "ffn.0": "linear1",
        "ffn.2": "linear2",
    }
    head, box_head = "layers.{j}.{p}", "bbox_embed.{i}.layers.{j}.{p}"
    return [
        *attention(f"{ours}self_attention", f"{theirs}self_attn"),
        *attention(f"{ours}text_attention", f"{theirs}ca_text"),
        Rule(f"{ours}cross_attention.{{rest}}", f"{theirs}cross_attn.{{rest}}"),
        *(Rule(f"{ours}{a}.{{p}}", f"{theirs}{b}.{{p}}") for a, b in words.items()),
        Rule("transformer_decoder.norm.{p}", "transformer.decoder.norm.{p}"),
        Rule(f"transformer_decoder.reference_head.{head}", f"transformer.decoder.ref_point_head.{head}"),
        # the decoder and the model name the same heads
        Rule(f"{BOX_HEADS}{{i}}.{head}", (f"transformer.decoder.{box_head}", box_head), COPIES),
    ]


def _query_selection() -> list[Rule]:
    return [
        Rule("query_selection.projection.{p}", "transformer.enc_output.{p}"),
        Rule("query_selection.norm.{p}", "transformer.enc_output_norm.{p}"),
        Rule("query_selection.content.{p}", "transformer.tgt_embed.{p}"),
        Rule("query_selection.box_head.{rest}", "transformer.enc_out_bbox_embed.{rest}"),
    ]


def shared_rules(backbone: list[Rule]) -> list[Rule]:
    """The parts that Grounding DINO has from DINO, under the same names, and those that it adds for text.

    `backbone`: the rules of backbones other than a ResNet.
    """
    return [
        *backbone,
        *resnet("backbone.0.body."),
        Rule("input_projection.{i}.{j}.{p}", "input_proj.{i}.{j}.{p}"),
        *bert("bert."),
        Rule("text_encoder.projection.{p}", "feat_map.{p}"),
        *_encoder(),
        *_query_selection(),
        *_decoder(),
    ]


def table(num_layers: int) -> Table:
    """The rules of a model with `num_layers` decoder layers."""
    # a remnant of training, which the authors' own model does not hold either
    remnant = Rule("carried.official.label_enc.{p}", "label_enc.{p}", carried=True)
    rules = (*shared_rules(swin_official("backbone.0.")), remnant)
    return Table(rules, collapse=(BOX_HEADS,), expand=(BOX_HEADS,), num_layers=num_layers)
