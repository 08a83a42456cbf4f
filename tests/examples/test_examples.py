"""The parts that docs/extending.md shows are found by name and do their work."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import grounding_dino.modeling  # noqa: F401
from grounding_dino.data.mappers import build_mapper
from grounding_dino.model_zoo import load_cfg

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from documents.sandbox import draw_berries


@pytest.fixture(scope="module")
def examples() -> dict[str, ModuleType]:
    """The modules of this folder, imported as a program beside them imports them."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return {name: importlib.import_module(name) for name in ("conv_backbone", "cosine_head", "csv_data_set")}
    finally:
        sys.path.remove(str(Path(__file__).parent))


@pytest.fixture
def cfg(tiny_cfg):
    """A tiny model with the backbone and the head of the examples."""
    features = ["s8", "s16", "s32"]
    options = ["MODEL.BACKBONE.NAME", "ConvBackbone", "MODEL.PIXEL_DECODER.IN_FEATURES", features]
    return load_cfg(tiny_cfg, [*options, "MODEL.CLASS_HEAD.NAME", "CosineContrast", "MODEL.WEIGHTS", ""])


def test_backbone_names_its_maps(examples, cfg):
    model = build_model(cfg)
    assert isinstance(model.backbone, examples["conv_backbone"].ConvBackbone)
    maps = model.backbone(torch.rand(1, 3, 50, 71))
    for name, shape in model.backbone.output_shape().items():
        assert maps[name].shape == (1, shape.channels, -(-50 // shape.stride), -(-71 // shape.stride))


def test_head_gives_no_score_to_padding(examples):
    from grounding_dino.structures import TextFeatures

    padding = torch.tensor([[False, False, True]])
    text = TextFeatures(
        embeddings=torch.randn(1, 3, 8),
        padding_mask=padding,
        attention_mask=~padding[:, None] & ~padding[:, :, None],
        position_ids=torch.arange(3)[None],
    )
    logits = examples["cosine_head"].CosineContrast()(torch.randn(1, 5, 8), text)
    assert logits.shape == (1, 5, 3) and logits[..., :2].isfinite().all() and (logits[..., 2] == -torch.inf).all()


def test_a_model_of_own_parts_learns_from_the_own_data_set(examples, cfg, data_root):
    draw_berries(data_root / "berries")
    records = DatasetCatalog.get("berries")
    with open(data_root / "berries" / "boxes.csv", encoding="utf-8", newline="") as file:
        assert sum(len(record["annotations"]) for record in records) == len(list(csv.DictReader(file)))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("berries",), ("berries",)
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    np.random.seed(0)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    losses = model([build_mapper(cfg, is_train=True)(dict(record)) for record in records])
    sum(losses.values()).backward()
    head = next(module for module in model.modules() if type(module).__name__ == "CosineContrast")
    assert head.bias.grad is not None and model.backbone.stem.weight.grad.abs().sum() > 0
