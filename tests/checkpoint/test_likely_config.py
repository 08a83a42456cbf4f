"""The error's advice names the configuration of each published model."""

import json
import re
from pathlib import Path

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.likely_config import likely_config
from grounding_dino.checkpoint.origins import translate_checkpoint

import pytest
import torch

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
    ],
)
def test_published_models(manifest, config):
    shapes = json.loads((REFERENCE / f"{manifest}.json").read_text())
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
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


def test_parts_of_a_model():
    assert "whole model" in likely_config({"backbone.stem.conv1.weight": torch.ones(1)})
