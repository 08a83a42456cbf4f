"""Which configuration a checkpoint fits, read off the shapes of its tensors; for error messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_SWIN_NAMES = {96: "Swin-T", 128: "Swin-B", 192: "Swin-L"}


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a checkpoint tell about the model, in our names."""

    backbone: str
    embed_dim: int
    num_levels: int
    class_bias: bool
    separate_box_heads: bool

    def __str__(self) -> str:
        heads = "one box head a layer" if self.separate_box_heads else "one box head for all layers"
        bias = "a class bias" if self.class_bias else "no class bias"
        return f"{self.backbone}, {self.embed_dim} channels, {self.num_levels} levels, {heads}, {bias}"


# The first row whose facts agree is the likely config of configs/grounding_dino/.
_CONFIGS: tuple[tuple[str, dict[str, object]], ...] = (
    ("swin_t_ogc", {"backbone": "Swin-T", "class_bias": False, "embed_dim": 256}),
    ("swin_b_cogcoor", {"backbone": "Swin-B", "class_bias": False, "embed_dim": 256}),
    ("r50_scratch", {"backbone": "ResNet-50", "embed_dim": 256}),
    ("mm_swin_t", {"backbone": "Swin-T", "class_bias": True, "embed_dim": 256}),
    ("mm_swin_b", {"backbone": "Swin-B", "class_bias": True, "embed_dim": 256}),
    ("mm_swin_l", {"backbone": "Swin-L", "class_bias": True, "embed_dim": 256}),
    ("shapes_tiny", {"backbone": "a timm model", "embed_dim": 128}),
)
_SHARED_HEAD_CONFIGS = ("swin_t_ogc", "swin_b_cogcoor", "shapes_tiny")


def describe_architecture(state: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of a whole model's tensors; None where they are not of one."""
    levels = state.get("pixel_decoder.level_embed")
    if levels is None or levels.ndim != 2:
        return None
    return Architecture(
        backbone=_backbone(state),
        embed_dim=levels.shape[1],
        num_levels=levels.shape[0],
        class_bias="transformer_decoder.class_heads.0.bias" in state,
        separate_box_heads=any(name.startswith("transformer_decoder.box_heads.1.") for name in state),
    )


def _backbone(state: Mapping[str, Tensor]) -> str:
    patches = state.get("backbone.patch_embed.projection.weight")
    if patches is not None:
        return _SWIN_NAMES.get(patches.shape[0], f"a Swin of {patches.shape[0]} channels")
    if "backbone.stem.conv1.weight" in state:
        blocks = {match.group(1) for name in state if (match := re.match(r"backbone\.res4\.(\d+)\.", name))}
        return {6: "ResNet-50", 23: "ResNet-101"}.get(len(blocks), "a ResNet")
    return "a timm model"


def likely_config(state: Mapping[str, Tensor]) -> str:
    """A sentence that names the configuration which fits these tensors."""
    architecture = describe_architecture(state)
    if architecture is None:
        return "the checkpoint does not hold a whole model"
    for name, facts in _CONFIGS:
        if all(getattr(architecture, key) == value for key, value in facts.items()):
            advice = f"configs/grounding_dino/{name}.yaml"
            if architecture.separate_box_heads and name in _SHARED_HEAD_CONFIGS:
                advice += " with MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON False"
            return f"the checkpoint holds {architecture}: {advice} fits it"
    return f"the checkpoint holds {architecture}: no configuration in configs/ is of this kind"
