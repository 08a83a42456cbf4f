"""A small model of ours, and the same weights as other origins write them."""

import itertools

from grounding_dino import modeling  # noqa: F401  # fills the registries
from grounding_dino.config import add_grounding_dino_config

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

SMALL = {
    "EMBED_DIM": 32,
    "SWIN.EMBED_DIM": 12,
    "SWIN.DEPTHS": [1, 1, 2, 1],
    "SWIN.NUM_HEADS": [1, 2, 3, 6],
    "TEXT_ENCODER.HIDDEN_SIZE": 32,
    "TEXT_ENCODER.NUM_LAYERS": 1,
    "TEXT_ENCODER.NUM_HEADS": 2,
    "TEXT_ENCODER.FFN_DIM": 32,
    "PIXEL_DECODER.NUM_LAYERS": 2,
    "PIXEL_DECODER.NUM_HEADS": 2,
    "PIXEL_DECODER.FFN_DIM": 64,
    "PIXEL_DECODER.TEXT_FUSION.EMBED_DIM": 32,
    "PIXEL_DECODER.TEXT_FUSION.NUM_HEADS": 1,
    "PIXEL_DECODER.TEXT_LAYER.NUM_HEADS": 1,
    "PIXEL_DECODER.TEXT_LAYER.FFN_DIM": 32,
    "QUERY_SELECTION.NUM_QUERIES": 10,
    "TRANSFORMER_DECODER.NUM_LAYERS": 2,
    "TRANSFORMER_DECODER.NUM_HEADS": 2,
    "TRANSFORMER_DECODER.FFN_DIM": 64,
}
MM = {"CLASS_HEAD.SCALE": "sqrt_dim", "CLASS_HEAD.BIAS_ON": True, "TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON": False}


def small_cfg(**changes):
    cfg = get_cfg()
    add_grounding_dino_config(cfg)
    for key, value in {**SMALL, **changes}.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def randomised(model, seed):
    """All parameters random, so that no two tensors are equal by their initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def make_model():
    """Builds small models, no two alike: `make_model()`, `make_model(mm=True)`, `make_model(**{"EMBED_DIM": 64})`."""
    seeds = itertools.count()

    def make(mm=False, **changes):
        return randomised(build_model(small_cfg(**{**(MM if mm else {}), **changes})), next(seeds))

    return make


@pytest.fixture(scope="session")
def write_config():
    """Writes the configuration of the same models to a file."""

    def write(path, mm=False, **changes):
        path.write_text(small_cfg(**{**(MM if mm else {}), **changes}).dump())
        return str(path)

    return write
