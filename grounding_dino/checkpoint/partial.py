"""Weights of an image backbone alone, as published for classification, from whatever naming fits best."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping

from grounding_dino.checkpoint.download import local_path
from grounding_dino.checkpoint.files import CheckpointError, read_checkpoint_file
from grounding_dino.checkpoint.origins import split_content, translate_checkpoint
from grounding_dino.checkpoint.report import LoadReport, listed
from grounding_dino.checkpoint.rules import Rule, StateDict, Table
from grounding_dino.checkpoint.tables.backbones import (
    convnext_official,
    resnet,
    resnet_caffe2,
    swin_huggingface,
    swin_mmdet,
    swin_official,
)

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_PREFIX = "backbone."
_NAMINGS: tuple[tuple[str, list[Rule]], ...] = (
    ("Swin's authors", swin_official("")),
    ("ConvNeXt's authors", convnext_official("")),
    ("mmdet", swin_mmdet("")),
    ("mmdet", swin_mmdet(_PREFIX)),
    ("Hugging Face", swin_huggingface("")),
    ("Hugging Face", swin_huggingface("swin.")),
    ("torchvision", resnet("")),
    ("mmdet", resnet(_PREFIX)),
    ("Detectron2 (Caffe2 names)", resnet_caffe2()),
    ("Detectron2", [Rule(f"{_PREFIX}{{rest}}", "{rest}")]),
    ("ours", [Rule(f"{_PREFIX}{{rest}}", f"{_PREFIX}{{rest}}")]),
    ("timm", [Rule(f"{_PREFIX}model.{{rest}}", "{rest}")]),
)


def load_backbone_weights(backbone: nn.Module, path_or_url: str | os.PathLike[str]) -> LoadReport:
    """Fill `backbone` from a classification model, a detector of any origin, or a backbone alone.

    This is what MODEL.BACKBONE.WEIGHTS means. The naming under which most tensors fit is taken. Classification heads
    are dropped and the backbone's own output norms stay new; both are logged.

    Raises:
        CheckpointError: nothing fits, or tensors of the right name have another shape (a backbone of another size).
    """
    path = local_path(path_or_url)
    tensors, origin = _best_naming(read_checkpoint_file(path), path, backbone.state_dict())
    expected = backbone.state_dict()
    common = [name for name in expected if name in tensors]
    misshapen = tuple(
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in common
        if tensors[name].shape != expected[name].shape
    )
    if misshapen or not common:
        what = f"tensors of another shape: {listed(misshapen)}" if misshapen else "no tensor of its names"
        kind = type(backbone).__name__
        raise CheckpointError(f"MODEL.BACKBONE.WEIGHTS {path} does not fit this {kind}: it has {what}")
    report = LoadReport(
        path,
        origin,
        taken=tuple(common),
        new=tuple(name for name in expected if name not in tensors),
        dropped=tuple(name for name in tensors if name not in expected),
    )
    backbone.load_state_dict({name: tensors[name] for name in common}, strict=False)
    logger.info("backbone: %s", report)
    return report


def _best_naming(content: Mapping[str, object], path: str, expected: Mapping[str, Tensor]) -> tuple[StateDict, str]:
    best: tuple[StateDict, str] = {}, "unknown"
    best_hits = 0
    for tensors, origin in _namings(content, path):
        hits = sum(name in expected for name in tensors)
        if hits > best_hits:
            best, best_hits = (tensors, origin), hits
    return best


def _namings(content: Mapping[str, object], path: str) -> Iterator[tuple[StateDict, str]]:
    """The backbone's tensors under each reading of the file's names; unread names are kept as they are."""
    try:
        checkpoint = translate_checkpoint(content, path)
    except CheckpointError:
        pass  # no whole detector
    else:
        yield _without_prefix(checkpoint.state), checkpoint.origin
        return
    tensors, _, _ = split_content(content)
    for origin, rules in _NAMINGS:
        try:
            translation = Table(tuple(rules)).to_ours(tensors)
        except CheckpointError:
            continue  # parts of a tensor are lacking: another naming
        state = _without_prefix(translation.state)
        if rules[0].theirs == "conv1_w":
            state = _with_identity_statistics(state)
        yield {**{name: tensors[name] for name in translation.unknown}, **state}, origin


def _without_prefix(state: Mapping[str, Tensor]) -> StateDict:
    return {name[len(_PREFIX) :]: tensor for name, tensor in state.items() if name.startswith(_PREFIX)}


def _with_identity_statistics(state: StateDict) -> StateDict:
    """Caffe2's norms are a scale and a shift: statistics that change nothing, with Detectron2's eps taken off."""
    filled = dict(state)
    for name, scale in state.items():
        if name.endswith(".norm.weight"):
            stem = name[: -len("weight")]
            filled.setdefault(f"{stem}running_mean", torch.zeros_like(scale))
            filled.setdefault(f"{stem}running_var", torch.ones_like(scale) - 1e-5)
    return filled
