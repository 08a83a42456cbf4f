"""Backbone weights from classification checkpoints of several namings."""

import pickle

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.partial import load_backbone_weights
from grounding_dino.checkpoint.rules import Table
from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.checkpoint.tables.backbones import (
    convnext_official,
    resnet,
    swin_huggingface,
    swin_mmdet,
    swin_official,
)
from grounding_dino.modeling.backbone.timm_backbone import TimmBackbone

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone


@pytest.fixture(scope="module")
def swin(make_model):
    return make_model().backbone


@pytest.fixture(scope="module")
def r50():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    return build_backbone(cfg)


def filled(backbone, value=7.0):
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.fill_(value)
    return backbone


def in_names(backbone, rules):
    return Table(tuple(rules)).to_theirs({f"backbone.{k}": v.clone() for k, v in backbone.state_dict().items()}).state


@pytest.mark.parametrize("rules", [swin_official(""), swin_mmdet("backbone."), swin_huggingface("swin.")])
def test_swin(tmp_path, make_model, swin, rules):
    tensors = {name: value for name, value in in_names(swin, rules).items() if "norms" not in name}
    torch.save({"model": {**tensors, "head.weight": torch.ones(2)}}, tmp_path / "swin.pth")
    other = filled(make_model().backbone)
    report = load_backbone_weights(other, tmp_path / "swin.pth")
    assert "head.weight" in report.dropped
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in swin.state_dict().items() if name in report.taken)
    assert len(report.taken) + len(report.new) == len(state)


def test_authors_swin_has_no_output_norms(tmp_path, make_model, swin):
    tensors = {k: v for k, v in in_names(swin, swin_official("")).items() if not k.startswith("norm")}
    torch.save({"model": {**tensors, "norm.weight": torch.ones(96)}}, tmp_path / "swin.pth")
    report = load_backbone_weights(make_model().backbone, tmp_path / "swin.pth")
    assert {name.split(".")[0] for name in report.new} == {"norms"}
    assert report.dropped == ("norm.weight",)


def test_a_whole_detector_gives_its_backbone(tmp_path, make_model):
    detector = make_model()
    save_checkpoint(str(tmp_path / "a.pth"), detector.state_dict(), to="official")
    other = filled(make_model().backbone)
    report = load_backbone_weights(other, tmp_path / "a.pth")
    assert report.origin == "official" and not report.new
    assert all(torch.equal(value, detector.backbone.state_dict()[name]) for name, value in other.state_dict().items())


def test_another_size_is_refused(tmp_path, make_model, swin):
    torch.save({"model": in_names(swin, swin_official(""))}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match="another shape.*patch_embed"):
        load_backbone_weights(make_model(**{"SWIN.EMBED_DIM": 24}).backbone, tmp_path / "swin.pth")
    torch.save({"model": {"something.else": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no tensor of its names"):
        load_backbone_weights(swin, tmp_path / "other.pth")


def test_convnext_of_its_authors(tmp_path):
    options = {"dims": [4, 8, 8, 8], "depths": [1, 1, 1, 1]}
    backbone = TimmBackbone(name="convnext_atto", out_strides=[8, 16, 32], options=options, out_norms=True)
    named = in_names(backbone, convnext_official(""))
    assert len(named) == len(backbone.state_dict())
    tensors = {name: value for name, value in named.items() if not name.startswith("norm")}
    torch.save({"model": {**tensors, "norm.weight": torch.ones(8), "head.bias": torch.ones(2)}}, tmp_path / "a.pth")
    other = filled(TimmBackbone(name="convnext_atto", out_strides=[8, 16, 32], options=options, out_norms=True))
    report = load_backbone_weights(other, tmp_path / "a.pth")
    assert report.origin == "ConvNeXt's authors" and set(report.dropped) == {"norm.weight", "head.bias"}
    assert {name.split(".")[0] for name in report.new} == {"norms"}
    assert torch.equal(other.model.stem_0.weight, backbone.model.stem_0.weight)


def test_resnet_of_torchvision(tmp_path, r50):
    from torchvision.models import resnet50

    torchvision_model = resnet50()
    torch.save(torchvision_model.state_dict(), tmp_path / "r50.pth")
    report = load_backbone_weights(r50, tmp_path / "r50.pth")
    assert not report.new and set(report.dropped) == {"fc.weight", "fc.bias"}
    assert torch.equal(r50.state_dict()["res4.5.conv3.weight"], torchvision_model.layer3[5].conv3.weight)
    assert torch.equal(r50.state_dict()["res2.0.shortcut.norm.bias"], torchvision_model.layer1[0].downsample[1].bias)


def test_resnet_of_detectron2(tmp_path, r50):
    arrays = {name: value.numpy() for name, value in r50.state_dict().items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": {**arrays, "fc.weight": arrays["stem.conv1.weight"]}, "__author__": "x"}))
    report = load_backbone_weights(filled(r50), path)
    assert not report.new
    assert torch.equal(r50.state_dict()["stem.conv1.weight"], torch.from_numpy(arrays["stem.conv1.weight"]))


def test_resnet_with_caffe2_names(tmp_path, r50):
    arrays = {
        "conv1_w": torch.randn(64, 3, 7, 7).numpy(),
        "res_conv1_bn_s": torch.randn(64).numpy(),
        "res_conv1_bn_b": torch.randn(64).numpy(),
        "res2_0_branch2a_w": torch.randn(64, 64, 1, 1).numpy(),
        "res3_0_branch1_bn_s": torch.randn(512).numpy(),
        "fc1000_w": torch.randn(2).numpy(),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays))
    report = load_backbone_weights(r50, tmp_path / "R-50.pkl")
    state = r50.state_dict()
    assert report.origin.startswith("Detectron2 (Caffe2")
    assert torch.equal(state["res2.0.conv1.weight"], torch.from_numpy(arrays["res2_0_branch2a_w"]))
    assert torch.equal(state["res3.0.shortcut.norm.weight"], torch.from_numpy(arrays["res3_0_branch1_bn_s"]))
    assert (state["stem.conv1.norm.running_mean"] == 0).all()
    assert torch.allclose(state["stem.conv1.norm.running_var"] + 1e-5, torch.ones(64))
    assert report.dropped == ("fc1000_w",)


def test_resnet_rules_cover_every_tensor(r50):
    assert len(in_names(r50, resnet(""))) == len(r50.state_dict())
