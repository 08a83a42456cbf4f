"""DINO as its authors name it: Grounding DINO's names, with class heads and a label embedding in place of text."""

from __future__ import annotations

from collections.abc import Mapping

from grounding_dino.checkpoint.rules import COPIES, Rule, Table
from grounding_dino.checkpoint.tables.backbones import convnext_official, swin_official
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS, shared_rules

from torch import Tensor

_PREFIX = "backbone.0."


def table(num_layers: int, tensors: Mapping[str, Tensor]) -> Table:
    """The rules for `tensors`, in their names or in ours, of a model with `num_layers` decoder layers."""
    class_head = "class_embed.{i}.{p}"
    rules = (
        *shared_rules(_backbone(tensors)),
        # the decoder and the model name the same heads
        Rule(f"{CLASS_HEADS}{{i}}.{{p}}", (f"transformer.decoder.{class_head}", class_head), COPIES),
        Rule("query_selection.class_head.{p}", "transformer.enc_out_class_embed.{p}"),
        Rule("denoising.label_embedding.{p}", "label_enc.{p}"),
    )
    heads = (BOX_HEADS, CLASS_HEADS)
    return Table(rules, collapse=heads, expand=heads, absent=(), num_layers=num_layers)


def _backbone(tensors: Mapping[str, Tensor]) -> list[Rule]:
    """Swin's and ConvNeXt's output norms have the same names, so only one of them is looked for."""
    if not any(name.startswith((f"{_PREFIX}downsample_layers.", "backbone.model.stages_")) for name in tensors):
        return swin_official(_PREFIX)
    norm, projection = tensors.get(f"{_PREFIX}norm0.weight"), tensors.get("input_proj.0.0.weight")
    if norm is None or projection is None:
        coarser_outputs = "backbone.norms.s4.weight" not in tensors
    else:
        coarser_outputs = projection.shape[1] > len(norm)
    return convnext_official(_PREFIX, coarser_outputs)
