"""Grounding DINO, MM-Grounding-DINO and DINO as mmdet names them (files with the key `state_dict`).

mmdet keeps one box head and one class head a decoder layer, and numbers the encoder's after the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from grounding_dino.checkpoint.rules import SCALAR_TO_VECTOR, Rule, Table
from grounding_dino.checkpoint.tables.backbones import resnet, swin_mmdet
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS, attention, bert, fusion


def _input_projection(num_inputs: int, num_levels: int) -> Iterator[Rule]:
    for level in range(num_levels):
        theirs = f"neck.convs.{level}." if level < num_inputs else f"neck.extra_convs.{level - num_inputs}."
        yield Rule(f"input_projection.{level}.0.{{p}}", f"{theirs}conv.{{p}}")
        yield Rule(f"input_projection.{level}.1.{{p}}", f"{theirs}gn.{{p}}")


def _encoder() -> list[Rule]:
    text, image = "pixel_decoder.layers.{i}.text_layer.", "pixel_decoder.layers.{i}.image_layer."
    their_text, their_image = "encoder.text_layers.{i}.", "encoder.layers.{i}."
    rules = [Rule("pixel_decoder.level_embed", "level_embed"), *fusion("encoder.fusion_layers.{i}.")]
    rules += attention(f"{text}self_attention", f"{their_text}self_attn.attn")
    rules.append(Rule(f"{image}self_attention.{{rest}}", f"{their_image}self_attn.{{rest}}"))
    for ours, theirs in ((text, their_text), (image, their_image)):
        rules += _feed_forward(ours, theirs)
        rules += [Rule(f"{ours}norm{n + 1}.{{p}}", f"{theirs}norms.{n}.{{p}}") for n in range(2)]
    return rules


def _feed_forward(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}ffn.0.{{p}}", f"{theirs}ffn.layers.0.0.{{p}}"),
        Rule(f"{ours}ffn.2.{{p}}", f"{theirs}ffn.layers.1.{{p}}"),
    ]


def _decoder(has_text: bool) -> list[Rule]:
    ours, theirs = "transformer_decoder.layers.{i}.", "decoder.layers.{i}."
    norms = ("norm_self", *(("norm_text",) if has_text else ()), "norm_cross", "norm_ffn")  # numbered in order
    return [
        *attention(f"{ours}self_attention", f"{theirs}self_attn.attn"),
        *attention(f"{ours}text_attention", f"{theirs}cross_attn_text.attn"),
        Rule(f"{ours}cross_attention.{{rest}}", f"{theirs}cross_attn.{{rest}}"),
        *_feed_forward(ours, theirs),
        *(Rule(f"{ours}{norm}.{{p}}", f"{theirs}norms.{n}.{{p}}") for n, norm in enumerate(norms)),
        Rule("transformer_decoder.norm.{p}", "decoder.norm.{p}"),
        Rule("transformer_decoder.reference_head.{rest}", "decoder.ref_point_head.{rest}"),
    ]


def _heads(num_layers: int) -> Iterator[Rule]:
    encoder, any_layer = str(num_layers), "{i}"
    for number, boxes, classes in (
        (encoder, "query_selection.box_head.", "query_selection.class_head."),
        (any_layer, BOX_HEADS + "{i}.", CLASS_HEADS + "{i}."),
    ):
        for layer in range(3):  # the activations between them are counted too
            theirs = f"bbox_head.reg_branches.{number}.{2 * layer}.{{p}}"
            yield Rule(f"{boxes}layers.{layer}.{{p}}", theirs)
        for leaf in ("weight", "bias"):  # DINO's are linear; Grounding DINO has at most a bias
            yield Rule(f"{classes}{leaf}", f"bbox_head.cls_branches.{number}.{leaf}")
        yield Rule(f"{classes}log_scale", f"bbox_head.cls_branches.{number}.log_scale", SCALAR_TO_VECTOR)


def table(num_layers: int, num_inputs: int, num_levels: int, has_text: bool = True) -> Table:
    """The rules of a model with `num_layers` decoder layers, `num_inputs` backbone maps and `num_levels` levels.

    Args:
        has_text: whether decoder layers attend to text; DINO's do not.
    """
    rules = [
        *swin_mmdet("backbone."),
        *resnet("backbone."),
        *_input_projection(num_inputs, num_levels),
        *bert("language_model.language_backbone.body.model."),
        Rule("text_encoder.projection.{p}", "text_feat_map.{p}"),
        *_encoder(),
        Rule("query_selection.projection.{p}", "memory_trans_fc.{p}"),
        Rule("query_selection.norm.{p}", "memory_trans_norm.{p}"),
        Rule("query_selection.content.{p}", "query_embedding.{p}"),
        *_decoder(has_text),
        *_heads(num_layers),
        Rule("denoising.label_embedding.{p}", "dn_query_generator.label_embedding.{p}"),
    ]
    return Table(tuple(rules), expand=(BOX_HEADS, CLASS_HEADS), absent=(), num_layers=num_layers)
