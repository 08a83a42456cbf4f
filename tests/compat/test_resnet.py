"""ResNet against torchvision's, its configuration and its freezing; registries and builders."""

from __future__ import annotations

import re

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, ResNet, build_backbone, build_model
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, make_stage
from torch import Tensor, nn


def detectron_name(name: str) -> str:
    """The name of torchvision's parameter `name` in Detectron2."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name if name.startswith("res") else f"stem.{name}"


@pytest.mark.parametrize("depth", [18, 50])
def test_same_numbers_as_torchvision(depth: int) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, f"resnet{depth}")().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    state = {
        detectron_name(name): value
        for name, value in model.state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    stages = ResNet.make_default_stages(depth, norm="FrozenBN")
    backbone = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["stem", "res2", "res3", "res4", "res5"])
    backbone.load_state_dict(state)

    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(x)
        expected = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        assert torch.allclose(found["stem"], expected, atol=1e-5)
        for stage in range(1, 5):
            expected = getattr(model, f"layer{stage}")(expected)
            scale = expected.abs().max()
            assert (found[f"res{stage + 1}"] - expected).abs().max() < 1e-5 * scale


def config(**settings: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    for name, value in settings.items():
        cfg.MODEL.RESNETS[name] = value
    return cfg


def test_shapes_from_config() -> None:
    backbone = build_backbone(config(OUT_FEATURES=["res2", "res5"]))
    assert backbone.output_shape() == {
        "res2": ShapeSpec(channels=256, stride=4),
        "res5": ShapeSpec(channels=2048, stride=32),
    }
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 32))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "res2": (1, 256, 16, 8),
        "res5": (1, 2048, 2, 1),
    }
    assert backbone.size_divisibility == 0


def test_stages_beyond_the_last_output_are_not_built() -> None:
    backbone = build_backbone(config(OUT_FEATURES=["res3"], DEPTH=18, RES2_OUT_CHANNELS=64))
    assert hasattr(backbone, "res3") and not hasattr(backbone, "res4")


def test_dilated_last_stage_keeps_the_stride() -> None:
    backbone = build_backbone(config(OUT_FEATURES=["res5"], RES5_DILATION=2))
    assert backbone.output_shape()["res5"].stride == 16


def test_stride_in_first_or_second_convolution() -> None:
    for in_1x1, strides in ((True, (2, 1)), (False, (1, 2))):
        block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, stride_in_1x1=in_1x1)
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_freezing_from_config() -> None:
    cfg = config(OUT_FEATURES=["res5"], NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg)
    trainable = {name.split(".")[0] for name, value in backbone.named_parameters() if value.requires_grad}
    assert trainable == {"res3", "res4", "res5"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.res2.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.stem.modules())


def test_classifier() -> None:
    stages = [make_stage(BottleneckBlock, 1, in_channels=8, out_channels=16, bottleneck_channels=4)]
    model = ResNet(BasicStem(3, 8), stages, num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32))["linear"].shape == (2, 7)


def test_make_stage_gives_each_block_its_value() -> None:
    blocks = make_stage(
        BottleneckBlock, 3, in_channels=8, out_channels=16, bottleneck_channels=4, stride_per_block=[2, 1, 1]
    )
    assert [block.stride for block in blocks] == [2, 1, 1]
    assert [block.in_channels for block in blocks] == [8, 16, 16]


def test_registered_backbone_and_model_are_built() -> None:
    @BACKBONE_REGISTRY.register()
    class ContractBackbone(Backbone):
        def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
            super().__init__()
            self._out_features = ["only"]
            self._out_feature_channels = {"only": input_shape.channels or 0}
            self._out_feature_strides = {"only": 1}

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"only": x}

    @META_ARCH_REGISTRY.register()
    class ContractModel(nn.Module):
        def __init__(self, cfg: CfgNode) -> None:
            super().__init__()
            self.backbone = build_backbone(cfg)

    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "ContractBackbone"
    cfg.MODEL.META_ARCHITECTURE = "ContractModel"
    assert build_model(cfg).backbone.output_shape() == {"only": ShapeSpec(channels=3, stride=1)}


def test_unknown_backbone_is_named() -> None:
    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "NoSuchBackbone"
    with pytest.raises(KeyError, match="NoSuchBackbone"):
        build_backbone(cfg)
