"""GLIP as mmdet names it: the authors' tower and head, under other prefixes, with mmdet's pyramid and Swin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grounding_dino.checkpoint.rules import Rule, Table
from grounding_dino.checkpoint.tables.backbones import swin_mmdet
from grounding_dino.checkpoint.tables.glip_official import NUM_MAPS, head
from grounding_dino.checkpoint.tables.grounding_dino_official import bert

from torch import Tensor


def _pyramid() -> Iterator[Rule]:
    """The extra levels are numbered after those of the backbone's maps."""
    for level in range(NUM_MAPS):
        yield Rule(f"pyramid.inner_blocks.{level}.0.{{p}}", f"neck.lateral_convs.{level}.conv.{{p}}")
        yield Rule(f"pyramid.layer_blocks.{level}.0.{{p}}", f"neck.fpn_convs.{level}.conv.{{p}}")
    for level, name in enumerate(("p6", "p7"), start=NUM_MAPS):
        yield Rule(f"pyramid.extra_blocks.{name}.{{p}}", f"neck.fpn_convs.{level}.conv.{{p}}")


def table(tensors: Mapping[str, Tensor]) -> Table:
    """The rules for `tensors`, in their names or in ours. mmdet has no prompt vectors."""
    rules = (
        *swin_mmdet("backbone."),
        *_pyramid(),
        *bert("language_model.language_backbone.body.model."),
        *head("bbox_head.head.", "dyconvs", "attnconv", (), tensors),
    )
    return Table(rules, absent=())
