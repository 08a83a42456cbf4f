"""Bringing a checkpoint's heads to the form that a model has."""

from __future__ import annotations

import re
from collections.abc import Mapping

from grounding_dino.checkpoint.rules import StateDict, collapse_heads, expand_heads
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

_CLASS_HEAD = re.compile(rf"({re.escape(CLASS_HEADS)}\d+|query_selection\.class_head)\.")
_LABELS = "denoising.label_embedding.weight"
_DINO_COLUMNS = 91  # of DINO's published class heads: a column is a COCO category id


def fit_heads(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> StateDict:
    """Bring the heads to the form that the model has, without a change of what they compute.

    One head for all layers is repeated for a model with one a layer; equal heads become one for a model that shares it.
    Heads that also select queries (Mask DINO's) are repeated for a model whose selection has its own.
    Class heads without parameters, the authors', get a learned scale of exp(0) where the model has one: so mmdet
    fine-tunes Grounding DINO.
    """
    fitted = dict(state)
    for prefix in (BOX_HEADS, CLASS_HEADS):
        numbers = {int(name[len(prefix) :].split(".", 1)[0]) for name in expected if name.startswith(prefix)}
        if numbers == {0}:
            fitted = collapse_heads(fitted, prefix)
        elif numbers:
            fitted = expand_heads(fitted, prefix, len(numbers))
    if "query_selection.projection.weight" in state and "query_selection.box_head.layers.0.weight" not in state:
        for prefix, own in ((BOX_HEADS, "query_selection.box_head."), (CLASS_HEADS, "query_selection.class_head.")):
            shared = f"{prefix}0."
            copies = {own + name[len(shared) :]: tensor for name, tensor in state.items() if name.startswith(shared)}
            fitted.update({name: tensor for name, tensor in copies.items() if name in expected})
    if not any(_CLASS_HEAD.match(name) for name in fitted):
        scales = [name for name in expected if _CLASS_HEAD.match(name) and name.endswith(".log_scale")]
        fitted.update({name: torch.zeros(expected[name].shape) for name in scales})
    return fitted


def select_coco_rows(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[StateDict, tuple[str, ...]]:
    """(state, names of changed tensors): rows of COCO's 80 categories, for a model of 80 classes, from DINO's 91.

    DINO's heads and label embedding are indexed by category id, of which eleven are not in use; 80 classes are taken to
    be COCO's in the order of their ids.
    """
    ids = torch.tensor([category["id"] for category in COCO_CATEGORIES if category["isthing"]])
    heads = [name for name in state if _CLASS_HEAD.match(name) and name.endswith(("weight", "bias"))]
    if not heads or any(len(state[name]) != _DINO_COLUMNS for name in heads if state[name].ndim):
        return dict(state), ()
    names = tuple(
        name
        for name in (*heads, _LABELS)
        if name in state and name in expected and len(expected[name]) == len(ids) < len(state[name])
    )
    return {**state, **{name: state[name][ids] for name in names}}, names
