"""Activation checkpointing of timm's and Detectron2's backbones: same gradients and statistics, less memory."""

from __future__ import annotations

import copy
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.engine.memory import LiveBytes
from grounding_dino.modeling.backbone.checkpointing import checkpoint_blocks
from grounding_dino.modeling.backbone.timm_backbone import TimmBackbone

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "convnext_atto": {"dims": [4, 8, 8, 8], "depths": [2, 2, 2, 2], "drop_path_rate": 0.2},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 1, 1, 1],
        "strict_img_size": False,
    },
    "efficientnet_lite0": {},  # blocks in sequences of sequences
}


def timm_backbone(name: str, activation_checkpointing: bool) -> nn.Module:
    torch.manual_seed(0)
    backbone = TimmBackbone(
        name=name,
        out_strides=[8, 16, 32],
        options=FAMILIES[name],
        activation_checkpointing=activation_checkpointing,
    )
    return backbone.train()


def trained(backbone: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and state after one pass, and what the forward pass has kept."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, 64, 64)
    with LiveBytes([*backbone.parameters(), *backbone.buffers(), images]) as counter:
        total = torch.stack([output.square().mean() for output in backbone(images).values()]).sum()
        kept = counter.live
        total.backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return gradients, dict(backbone.state_dict()), kept


def assert_equal_but_smaller(plain: nn.Module, checkpointed: nn.Module) -> None:
    expected, found = trained(plain), trained(checkpointed)
    torch.testing.assert_close(found[0], expected[0], rtol=0.0, atol=0.0)
    torch.testing.assert_close(found[1], expected[1], rtol=0.0, atol=0.0)
    assert len(found[0]) > 10
    assert found[2] < 0.8 * expected[2]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_timm_models_have_the_same_gradients_and_statistics_in_less_memory(name: str) -> None:
    assert_equal_but_smaller(timm_backbone(name, False), timm_backbone(name, True))


@pytest.mark.parametrize(("depth", "norm"), [(18, "BN"), (50, "FrozenBN")])
def test_resnets_have_the_same_gradients_and_statistics_in_less_memory(
    tiny_cfg: CfgNode, depth: int, norm: str
) -> None:
    node = tiny_cfg.MODEL.RESNETS
    tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    node.DEPTH, node.NORM, node.STEM_OUT_CHANNELS = depth, norm, 8
    node.RES2_OUT_CHANNELS, node.WIDTH_PER_GROUP = (64, 64) if depth == 18 else (16, 4)
    tiny_cfg.MODEL.PIXEL_DECODER.IN_FEATURES = node.OUT_FEATURES
    backbones = []
    for node.ACTIVATION_CHECKPOINTING_ON in (False, True):
        torch.manual_seed(0)
        backbones.append(build_model(tiny_cfg).train().backbone)
    assert_equal_but_smaller(*backbones)


def test_a_copy_is_checkpointed_by_itself() -> None:
    backbone = timm_backbone("resnet18", True)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    gradients, _, _ = trained(twin)
    assert any(gradient.any() for gradient in gradients.values())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_nothing_is_computed_twice_at_inference() -> None:
    backbone, plain = (timm_backbone("resnet18", on).eval() for on in (True, False))
    images = torch.randn(1, 3, 64, 64)
    outputs = backbone(images)
    torch.testing.assert_close(outputs, plain(images), rtol=0.0, atol=0.0)
    assert "Checkpoint" not in type(outputs["s32"].grad_fn).__name__


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.relu_())


def test_blocks_that_cannot_be_computed_again_are_refused() -> None:
    with pytest.raises(ValueError, match="Conv2d has no sequences of blocks to checkpoint"):
        checkpoint_blocks(nn.Conv2d(3, 4, 1))
    stages = nn.Sequential(InPlace(), InPlace()).train()
    checkpoint_blocks(stages)
    with pytest.raises(ValueError, match="InPlace of the backbone changes its input"):
        stages(torch.randn(2, 3) * 1.0)
