"""The error's advice names the configuration of each published model."""

import json
import re
from pathlib import Path

import grounding_dino.modeling  # noqa: F401  # fills the registries
from grounding_dino.checkpoint.likely_config import likely_config
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg

import pytest
import torch
from detectron2.modeling import build_model

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.mark.parametrize(
    "manifest, config",
    [
        ("grounding_dino/manifest_swin_t_ogc", "swin_t_ogc.yaml fits"),
        ("grounding_dino/manifest_swin_b_cogcoor", "swin_b_cogcoor.yaml fits"),
        ("mmdet/manifest_mmdet_grounding_dino_r50_scratch_8xb2_1x_coco", "r50_scratch.yaml fits"),
        (
            "mmdet/manifest_mmdet_grounding_dino_swin-b_pretrain_mixeddata",
            "swin_b_cogcoor.yaml with MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON False fits",
        ),
        ("mmdet/manifest_mmdet_mm_grounding_dino_swin-t_pretrain_obj365_goldg", "mm_swin_t.yaml fits"),
        ("mmdet/manifest_mmdet_mm_grounding_dino_swin-b_pretrain_obj365_goldg_v3det", "mm_swin_b.yaml fits"),
        ("mmdet/manifest_mmdet_mm_grounding_dino_swin-l_pretrain_all", "mm_swin_l.yaml fits"),
        ("mmdet/manifest_mmdet_dino-4scale_r50_8xb2-12e_coco", "/dino/mmdet_r50_4scale_12ep.yaml fits"),
        ("mmdet/manifest_mmdet_dino-5scale_swin-l_8xb2-12e_coco", "/dino/mmdet_swin_l_5scale_12ep.yaml fits"),
        ("dino/manifest_r50_4scale", "/dino/r50_4scale_12ep.yaml fits"),
        ("dino/manifest_r50_5scale", "/dino/r50_5scale_12ep.yaml fits"),
        ("dino/manifest_swinl_4scale", "/dino/swin_l_4scale_12ep.yaml fits"),
        ("dino/manifest_swinl_5scale", "/dino/swin_l_5scale_12ep.yaml fits"),
        ("dino/manifest_convnext_xl_4scale", "/dino/convnext_xl_4scale_12ep.yaml fits"),
        ("mask_dino/manifest_r50_instance_hid1024", "/mask_dino/coco/r50_instance_hid1024.yaml fits"),
        ("mask_dino/manifest_r50_instance_2048", "/mask_dino/coco/r50_instance.yaml fits"),
        ("mask_dino/manifest_swinl_instance", "/mask_dino/coco/swin_l_instance.yaml fits"),
        ("mask_dino/manifest_r50_panoptic", "/mask_dino/coco/r50_panoptic.yaml fits"),
        ("mask_dino/manifest_swinl_panoptic", "/mask_dino/coco/swin_l_panoptic.yaml fits"),
        ("mask_dino/manifest_ade20k_semantic", "/mask_dino/ade20k/r50_semantic.yaml fits"),
        ("mask_dino/manifest_cityscapes_semantic", "/mask_dino/cityscapes/r50_semantic.yaml fits"),
        ("glip/manifest_mmdet_glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365", "/glip/glip_t_a.yaml fits"),
        ("glip/manifest_mmdet_glip_atss_swin-t_c_fpn_dyhead_pretrain_obj365-goldg", "/glip/glip_t.yaml fits"),
        ("glip/manifest_mmdet_glip_atss_swin-l_fpn_dyhead_pretrain_mixeddata", "/glip/glip_l.yaml fits"),
        ("glip/manifest_official_glip_swin-t_a", "/glip/glip_t_a.yaml fits"),
        ("glip/manifest_official_glip_swin-t_c_full", "/glip/glip_t.yaml fits"),
        ("glip/manifest_official_glip_swin-l", "/glip/glip_l.yaml fits"),
    ],
)
def test_published_models(manifest, config):
    shapes = json.loads((REFERENCE / f"{manifest}.json").read_text())
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    if "mmdet" in manifest:  # equal heads would count as one
        tensors |= {
            n: torch.rand(4) for n in tensors if n.startswith("bbox_head.reg_branches") and n.endswith("4.bias")
        }
    advice = likely_config(translate_checkpoint({"model": tensors}, manifest).state)
    assert config in advice
    assert (Path(__file__).parents[2] / re.search(r"configs/\S+\.yaml", advice)[0]).is_file()


@pytest.mark.parametrize(
    "manifest, columns, config",
    [
        (
            "dino/manifest_r50_4scale",
            3,
            "r50_4scale_12ep.yaml with MODEL.CLASS_HEAD.NUM_CLASSES 3, MODEL.CLASS_HEAD.CAT",
        ),
        ("mask_dino/manifest_r50_instance_2048", 1, "coco/r50_instance.yaml with MODEL.CLASS_HEAD.NUM_CLASSES 1 fits"),
        ("mask_dino/manifest_cityscapes_semantic", 5, "r50_semantic.yaml with MODEL.CLASS_HEAD.NUM_CLASSES 4 fits"),
    ],
)
def test_fine_tuned_models_differ_in_their_classes(manifest, columns, config):
    shapes = json.loads((REFERENCE / f"{manifest}.json").read_text())
    state = translate_checkpoint({"model": {n: torch.zeros(1).expand(s) for n, s in shapes.items()}}, manifest).state
    state["transformer_decoder.class_heads.0.weight"] = torch.zeros(columns, 256)
    assert config in likely_config(state)


def test_prompt_vectors_of_glip():
    shapes = json.loads((REFERENCE / "glip/manifest_official_glip_swin-l.json").read_text())
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    tensors["rpn.tunable_linear.weight"] = torch.zeros(1).expand(1000, 768)
    advice = likely_config(translate_checkpoint({"model": tensors}, "x").state)
    assert "GLIP, Swin-L, 256 channels, 8 blocks with fusion of text and picture, 1000 prompt vectors: " in advice
    assert "configs/glip/glip_l.yaml with MODEL.DENSE_HEAD.PROMPT_VECTORS 1000 fits it" in advice


def test_the_small_glip_of_shapes(weightless):
    state = build_model(load_cfg("glip_shapes_tiny", ["MODEL.DEVICE", "meta"])).state_dict()
    assert "GLIP, a timm model, " in likely_config(state) and "/glip_shapes_tiny.yaml fits it" in likely_config(state)


def test_a_glip_of_no_configuration(tiny_glip):
    advice = likely_config(tiny_glip.state_dict())
    assert "GLIP, a Swin of 8 channels, 32 channels, 1 blocks with" in advice
    assert "no configuration in configs/ is of this kind" in advice


def test_parts_of_a_model():
    assert "whole model" in likely_config({"tower.blocks.0.offset.bias": torch.ones(1)})
    assert "whole model" in likely_config({"backbone.stem.conv1.weight": torch.ones(1)})
