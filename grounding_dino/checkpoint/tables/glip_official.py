"""GLIP as its authors name it (files with the key `model` and the prefix `module.`).

Their tower numbers modules, not blocks: with deep fusion a block is three of them (fusion, text layer, convolution),
without it one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from grounding_dino.checkpoint.rules import ROWS, SAME, Join, Rule, Table, each
from grounding_dino.checkpoint.tables.backbones import swin_official
from grounding_dino.checkpoint.tables.grounding_dino_official import bert, fusion

import torch
from torch import Tensor

NUM_MAPS = 3  # of the backbone, in every published model: those of strides 8, 16 and 32
_NUM_LEVELS = 5  # of the pyramid
_MODULE = re.compile(r".*\.dyhead_tower\.(\d+)\.(b_attn\.)?")
_OUR_BLOCK = re.compile(r"tower\.blocks\.(\d+)\.(fusion\.)?")
# ours is a linear layer of the mean, theirs a 1 x 1 convolution of it
_AS_CONVOLUTION = each(lambda tensor: tensor.flatten(1), lambda tensor: tensor[..., None, None])


def head(
    theirs: str, dynamic: str, weight: str, scale_shape: tuple[int, ...], tensors: Mapping[str, Tensor]
) -> list[Rule]:
    """Tower and head under the prefix `theirs`, which `tensors`, in their names or in ours, show the blocks of.

    `dynamic` and `weight` are their words for the convolutions of three levels and for the weight of their results;
    each number that a level's boxes are multiplied with has `scale_shape` there; ours are one vector.
    """
    words = {
        "text_projection.{p}": "dot_product_projection_text.{p}",
        "log_scale": "log_scale",
        "text_bias": "bias_lang",
        "bias": "bias0",
        "box.{p}": "bbox_pred.{p}",
        "centerness.{p}": "centerness.{p}",
    }
    scales = Join(  # files converted from the authors' may hold numbers with an axis where mmdet has none
        lambda numbers: torch.cat([number.reshape(1) for number in numbers]),
        lambda vector, _: [number.reshape(scale_shape).clone() for number in vector],
    )
    return [
        *(Rule(f"head.{a}", f"{theirs}{b}") for a, b in words.items()),
        Rule("head.level_scales", tuple(f"{theirs}scales.{level}.scale" for level in range(_NUM_LEVELS)), scales),
        *_tower(f"{theirs}dyhead_tower.", dynamic, weight, tensors),
    ]


def _tower(theirs: str, dynamic: str, weight: str, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    found = [match for name in tensors if (match := _MODULE.match(name) or _OUR_BLOCK.match(name))]
    per_block = 3 if any(match[2] for match in found) else 1
    counts_modules = per_block if any(match.re is _MODULE for match in found) else 1
    for block in sorted({int(match[1]) // counts_modules for match in found}):
        ours, first = f"tower.blocks.{block}.", per_block * block
        if per_block > 1:
            yield from fusion(f"{theirs}{first}.b_attn.", f"{ours}fusion.")
            yield from _text_layer(f"{ours}text_layer.", f"{theirs}{first + 1}.")
        yield from _convolution(f"{ours}convolution.", f"{theirs}{first + per_block - 1}.", dynamic, weight)


def _text_layer(ours: str, theirs: str) -> list[Rule]:
    """A layer of BERT, which in ours is one of torch's."""
    words = {
        "self_attention.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "ffn.0": "intermediate.dense",
        "ffn.2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    parts = tuple(f"{theirs}attention.self.{word}.{{p}}" for word in ("query", "key", "value"))
    return [
        Rule(f"{ours}self_attention.in_proj.{{p}}", parts, ROWS),
        *(Rule(f"{ours}{a}.{{p}}", f"{theirs}{b}.{{p}}") for a, b in words.items()),
    ]


def _convolution(ours: str, theirs: str, dynamic: str, weight: str) -> list[Rule]:
    return [
        Rule(f"{ours}branches.{{i}}.convolution.{{p}}", f"{theirs}{dynamic}.{{i}}.conv.{{p}}"),
        Rule(f"{ours}branches.{{i}}.norm.{{p}}", f"{theirs}{dynamic}.{{i}}.bn.{{p}}"),
        Rule(f"{ours}offset.{{p}}", f"{theirs}offset.{{p}}"),
        Rule(f"{ours}scale_attention.weight", f"{theirs}{weight}.1.weight", _AS_CONVOLUTION),
        Rule(f"{ours}scale_attention.bias", f"{theirs}{weight}.1.bias", SAME),
        Rule(f"{ours}activation.coefficients.{{i}}.{{p}}", f"{theirs}relu.fc.{{i}}.{{p}}"),
    ]


def _pyramid() -> Iterator[Rule]:
    """Their maps are numbered by the backbone's stages, of which the first is not used."""
    for level in range(NUM_MAPS):
        for ours, theirs in (("inner_blocks", "fpn_inner"), ("layer_blocks", "fpn_layer")):
            yield Rule(f"pyramid.{ours}.{level}.0.{{p}}", f"backbone.fpn.{theirs}{level + 2}.{{p}}")
    for name in ("p6", "p7"):
        yield Rule(f"pyramid.extra_blocks.{name}.{{p}}", f"backbone.fpn.top_blocks.{name}.{{p}}")


def table(tensors: Mapping[str, Tensor]) -> Table:
    """The rules for `tensors`, in their names or in ours."""
    rules = (
        *swin_official("backbone.body."),
        *_pyramid(),
        *bert("language_backbone.body.model."),
        Rule("prompt_vectors.{p}", "rpn.tunable_linear.{p}"),  # theirs as the weight of a layer, which is never applied
        # a head for fixed classes and a projection for another loss, which nothing reads, and tables of constants
        Rule("carried.official.cls_logits.{p}", "rpn.head.cls_logits.{p}", carried=True),
        Rule("carried.official.resizer.{rest}", "rpn.resizer.{rest}", carried=True),
        Rule("carried.official.cell_anchors.{i}", "rpn.anchor_generator.cell_anchors.{i}", carried=True),
        *head("rpn.head.", "DyConv", "AttnConv", (1,), tensors),
    )
    return Table(rules, absent=())
