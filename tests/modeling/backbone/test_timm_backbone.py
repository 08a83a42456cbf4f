"""timm models as backbones: layouts, sizes, errors."""

from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.modeling.backbone.timm_backbone import TimmBackbone

import pytest
import timm
import torch
from detectron2.modeling import build_backbone

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [8, 8, 16, 16]},
    "convnext_atto": {"dims": [4, 8, 8, 8], "depths": [1, 1, 1, 1]},  # rounds sizes down by itself
    "efficientnet_lite0": {},  # its features do not name their layout
    "swin_tiny_patch4_window7_224": {  # NHWC; takes one size by default
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "strict_img_size": False,
    },
}


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_maps_of_each_family(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name=name, out_strides=[8, 16, 32], options=FAMILIES[name]).eval()
    shapes = backbone.output_shape()
    for height, width in ((64, 96), (50, 71), (5, 1)):
        outputs = backbone(torch.randn(2, 3, height, width))
        assert list(outputs) == list(shapes) == ["s8", "s16", "s32"]
        for output, feature in outputs.items():
            stride = shapes[output].stride
            rounded_up = (-(-height // stride), -(-width // stride))
            assert feature.shape == (2, shapes[output].channels, *rounded_up)
            assert feature.isfinite().all()


@torch.no_grad()
def test_equals_timm() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name="resnet18", out_strides=[4, 16], options=FAMILIES["resnet18"]).eval()
    plain = timm.create_model("resnet18", features_only=True, out_indices=[1, 3], **FAMILIES["resnet18"]).eval()
    plain.load_state_dict(backbone.model.state_dict())
    images = torch.randn(1, 3, 64, 32)
    for ours, theirs in zip(backbone(images).values(), plain(images), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_output_norms() -> None:
    """Each map is normalised over its channels, at every place alone."""
    torch.manual_seed(0)
    options = {"name": "convnext_atto", "out_strides": [8, 32], "options": FAMILIES["convnext_atto"]}
    backbone = TimmBackbone(**options, out_norms=True).eval()
    plain = TimmBackbone(**options).eval()
    plain.model.load_state_dict(backbone.model.state_dict())
    norms = {name: shape for name, shape in backbone.state_dict().items() if not name.startswith("model.")}
    assert set(norms) == {f"norms.{output}.{leaf}" for output in ("s8", "s32") for leaf in ("weight", "bias")}
    backbone.norms["s8"].weight.mul_(3.0)
    images = torch.randn(1, 3, 50, 71)
    for name, feature in backbone(images).items():
        raw = plain(images)[name]
        deviation = (raw - raw.mean(1, keepdim=True)) / (raw.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(feature, deviation * (3.0 if name == "s8" else 1.0), atol=1e-5, rtol=1e-5)


def test_from_config(tiny_cfg) -> None:
    tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    tiny_cfg.MODEL.TIMM.OUT_STRIDES = [8, 32]
    tiny_cfg.MODEL.TIMM.OPTIONS.CHANNELS = [8, 8, 16, 16]
    shapes = build_backbone(tiny_cfg).output_shape()
    assert {name: (shape.stride, shape.channels) for name, shape in shapes.items()} == {"s8": (8, 8), "s32": (32, 16)}


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet_18' \(MODEL.TIMM.NAME\); similar names: \['"):
        TimmBackbone(name="resnet_18", out_strides=[8])
    with pytest.raises(ValueError, match=r"resnet18 has no feature map of stride \[64\].*it has \[2, 4, 8, 16, 32\]"):
        TimmBackbone(name="resnet18", out_strides=[8, 64], options=FAMILIES["resnet18"])
    strict = {**FAMILIES["swin_tiny_patch4_window7_224"], "strict_img_size": True}
    backbone = TimmBackbone(name="swin_tiny_patch4_window7_224", out_strides=[8], options=strict)
    with pytest.raises(ValueError, match="refuses pictures of 64 x 32 .*strict_img_size: False"):
        backbone(torch.zeros(1, 3, 64, 32))
