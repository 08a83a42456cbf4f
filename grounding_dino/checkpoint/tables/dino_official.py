"""DINO as its authors name it: Grounding DINO's names, with class heads and a label embedding in place of text."""

from __future__ import annotations

from grounding_dino.checkpoint.rules import COPIES, Rule, Table
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS, shared_rules


def table(num_layers: int) -> Table:
    """The rules of a model with `num_layers` decoder layers."""
    class_head = "class_embed.{i}.{p}"
    rules = (
        *shared_rules(),
        # the decoder and the model name the same heads
        Rule(f"{CLASS_HEADS}{{i}}.{{p}}", (f"transformer.decoder.{class_head}", class_head), COPIES),
        Rule("query_selection.class_head.{p}", "transformer.enc_out_class_embed.{p}"),
        Rule("denoising.label_embedding.{p}", "label_enc.{p}"),
    )
    heads = (BOX_HEADS, CLASS_HEADS)
    return Table(rules, collapse=heads, expand=heads, absent=(), num_layers=num_layers)
