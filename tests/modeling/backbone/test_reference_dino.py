"""DINO's backbones against the authors' maps (tests/reference/dino), with the recipe's weights."""

from __future__ import annotations

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import get_cfg

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone

pytestmark = pytest.mark.slow

ATOL = 4e-5  # the README's
PICTURES = {
    "r50_4scale": [(192, 256, 1), (160, 224, 2)],
    "swinl_4scale": [(192, 256, 1), (160, 224, 2)],
    "convnext_xl_4scale": [(256, 256, 5)],
}
BACKBONES = {
    "r50_4scale": {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.NORM": "FrozenBN",
    },
    "swinl_4scale": {
        "MODEL.BACKBONE.NAME": "SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": 192,
        "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
        "MODEL.SWIN.NUM_HEADS": [6, 12, 24, 48],
        "MODEL.SWIN.WINDOW_SIZE": 12,
    },
    "convnext_xl_4scale": {
        "MODEL.BACKBONE.NAME": "TimmBackbone",
        "MODEL.TIMM.NAME": "convnext_xlarge",
        "MODEL.TIMM.OUT_NORMS_ON": True,
    },
}


@torch.no_grad()
@pytest.mark.parametrize("case", sorted(BACKBONES))
def test_maps(case: str, recipe_weights, reference, fill) -> None:
    cfg = get_cfg()
    cfg.merge_from_list([item for pair in BACKBONES[case].items() for item in pair])
    backbone = build_backbone(cfg).eval()
    state = translate_checkpoint({"model": recipe_weights("dino", f"manifest_{case}.json")}, case).state
    prefix = "backbone."
    backbone.load_state_dict({name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)})
    golden = np.load(reference / "dino" / f"golden_{case}.npz")
    sizes = PICTURES[case]
    images = torch.zeros(len(sizes), 3, max(size[0] for size in sizes), max(size[1] for size in sizes))
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    for image, (height, width, seed) in zip(images, sizes):
        pixels = torch.from_numpy(fill.fill_image(height, width, seed)).permute(2, 0, 1)
        image[:, :height, :width] = (pixels - mean) / std
    maps = list(backbone(images).values())
    assert len(maps) == 3
    for number, feature in enumerate(maps):
        assert list(feature.shape) == golden[f"feat{number}_shape"].tolist()
        values = feature.double().numpy().ravel()  # in C order
        statistics = [values.mean(), values.std(), values.min(), values.max()]
        np.testing.assert_allclose(statistics, golden[f"feat{number}_stats"], rtol=0, atol=ATOL)
        every = max(1, values.size // 512)
        expected = golden[f"feat{number}_sub"]
        np.testing.assert_allclose(values[::every][: len(expected)], expected, rtol=0, atol=ATOL)
