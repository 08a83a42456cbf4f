"""The error's advice names the configuration of each published model."""

import json
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
    ],
)
def test_published_models(manifest, config):
    shapes = json.loads((REFERENCE / f"{manifest}.json").read_text())
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    if "mmdet" in manifest:  # equal heads would count as one
        tensors |= {
            n: torch.rand(4) for n in tensors if n.startswith("bbox_head.reg_branches") and n.endswith("4.bias")
        }
    assert config in likely_config(translate_checkpoint({"model": tensors}, manifest).state)


def test_parts_of_a_model():
    assert "whole model" in likely_config({"backbone.stem.conv1.weight": torch.ones(1)})
