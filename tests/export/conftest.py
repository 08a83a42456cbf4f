"""Tiny models of each family for export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grounding_dino.model_zoo import build_model, load_cfg

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

TINY_DINO = [
    *("MODEL.DEVICE", "cpu", "MODEL.EMBED_DIM", 64, "MODEL.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", ""),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.PIXEL_DECODER.NUM_LAYERS", 1, "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1),
    *("MODEL.QUERY_SELECTION.NUM_QUERIES", 12),
]
# Without larger numbers here, places that are alike would be ranked by their rounding.
_SPREAD = (
    "box_head",
    "sampling_offsets.weight",
    "attention_weights.weight",
    "class_head",
    "query_selection.projection",
)


@pytest.fixture(scope="session")
def spread_model() -> Callable[[CfgNode], nn.Module]:
    """`spread_model(cfg)`: a model with random weights whose queries differ, the same every time."""

    def build(cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = ""
        model = build_model(cfg)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(word in name for word in _SPREAD):
                    parameter.normal_(std=0.2)
        return model

    return build


@pytest.fixture
def family_cfg(tiny_cfg: CfgNode, build_tiny_mask: Callable[..., CfgNode]) -> Callable[..., CfgNode]:
    """`family_cfg(name, *opts)`: the configuration of a tiny model of that family."""

    def build(name: str, *opts: Any) -> CfgNode:
        if name == "grounding_dino":
            return load_cfg(tiny_cfg, opts)
        if name == "mask_dino":
            return build_tiny_mask(*opts)
        return load_cfg("dino/r50_4scale_12ep", [*TINY_DINO, *opts])

    return build


@pytest.fixture(scope="session")
def parts_of() -> Callable[[Sequence[str], Sequence[Any], int, dict[str, Any]], dict[str, Any]]:
    """`parts_of(names, outputs, row, expected)`: one picture's outputs, cut as far as it has them alone."""

    def cut(names: Sequence[str], outputs: Sequence[Any], row: int, expected: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, output in zip(names, outputs):
            sizes = expected[name].shape
            found[name] = torch.as_tensor(output)[row : row + 1, :, : sizes[2]].numpy()
            if name == "pred_masks":
                found[name] = found[name][..., : sizes[3]]
        return found

    return cut
