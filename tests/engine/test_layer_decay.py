"""Learning rates by layer, in all kinds of backbones and in BERT."""

from __future__ import annotations

from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.engine.layer_decay import layer_indices
from grounding_dino.engine.optimizer import build_optimizer, parameter_groups

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

PLAIN = ("SOLVER.BASE_LR", 1.0, "SOLVER.PARAMETER_GROUPS", [])
RESNET = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.PIXEL_DECODER.IN_FEATURES", ["res3", "res4", "res5"]),
)


def timm(name: str, **options: Any) -> tuple[Any, ...]:
    maps = ["s8", "s16", "s32"]
    opts = ("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.TIMM.NAME", name, "MODEL.PIXEL_DECODER.IN_FEATURES", maps)
    return (*opts, "MODEL.TIMM.OPTIONS", CfgNode(options))


SMALL_RESNET = timm("resnet18", stem_type="deep", stem_width=8, channels=[8, 8, 8, 8], layers=[1, 2, 1, 1])
CONVNEXT = timm("convnext_atto", depths=[1, 1, 2, 1], dims=[8, 8, 8, 8])


def rates(cfg: CfgNode, *opts: Any) -> dict[str, float]:
    cfg.merge_from_list([*PLAIN, *opts])
    model = build_model(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in parameter_groups(cfg, model) for p in group["params"]}


@pytest.mark.parametrize(
    ("opts", "blocks", "first", "last"),
    [
        ((), 5, "backbone.patch_embed.projection.weight", "backbone.norms.stage4.weight"),
        (RESNET, 8, "backbone.stem.conv1.weight", "backbone.res5.1.conv2.weight"),
        (SMALL_RESNET, 5, "backbone.model.conv1.0.weight", "backbone.model.layer4.0.bn2.weight"),
        (CONVNEXT, 5, "backbone.model.stem_0.weight", "backbone.model.stages_3.blocks.0.norm.weight"),
    ],
    ids=["swin", "resnet", "timm_resnet", "timm_convnext"],
)
def test_rates_of_a_backbone_fall_towards_its_stem(
    tiny_cfg: CfgNode, opts: tuple[Any, ...], blocks: int, first: str, last: str
) -> None:
    found = rates(tiny_cfg, *opts, "SOLVER.LAYER_DECAY.BACKBONE", 0.5)
    assert found[first] == 0.5**blocks
    assert found[last] == 1.0
    of_backbone = [rate for name, rate in found.items() if name.startswith("backbone.")]
    assert sorted(set(of_backbone)) == [0.5**layer for layer in range(blocks, -1, -1)]
    assert {rate for name, rate in found.items() if not name.startswith("backbone.")} == {1.0}


def test_rates_of_bert_fall_towards_its_embeddings(tiny_cfg: CfgNode) -> None:
    found = rates(tiny_cfg, "MODEL.TEXT_ENCODER.NUM_LAYERS", 3, "SOLVER.LAYER_DECAY.TEXT_ENCODER", 0.1)
    bert = "text_encoder.bert"
    assert found[f"{bert}.embeddings.word_embeddings.weight"] == pytest.approx(1e-3)
    for layer, rate in enumerate((1e-2, 1e-1, 1.0)):
        assert found[f"{bert}.encoder.layer.{layer}.attention.self.query.weight"] == pytest.approx(rate)
    assert found["text_encoder.projection.weight"] == 1.0


def test_rates_multiply_with_those_of_parameter_groups(tiny_cfg: CfgNode) -> None:
    groups = [["^backbone\\.", 0.1, 1.0]]
    found = rates(tiny_cfg, "SOLVER.LAYER_DECAY.BACKBONE", 0.5, "SOLVER.PARAMETER_GROUPS", groups)
    assert found["backbone.layers.3.blocks.0.norm1.weight"] == pytest.approx(0.1)
    assert found["backbone.layers.2.blocks.0.norm1.weight"] == pytest.approx(0.05)


def test_what_joins_blocks_goes_with_the_block_before() -> None:
    names = [
        "stem.w",
        "layers.0.blocks.0.w",
        "layers.0.blocks.1.w",
        "layers.0.downsample.w",
        "layers.1.blocks.0.w",
        "n.w",
    ]
    assert list(layer_indices(names).values()) == [0, 1, 2, 2, 3, 3]
    assert list(layer_indices(["patch_embed.w", "blocks.0.w", "blocks.1.attn.w"]).values()) == [0, 1, 2]


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_that_is_no_share_is_refused(tiny_cfg: CfgNode, decay: float) -> None:
    tiny_cfg.SOLVER.LAYER_DECAY.BACKBONE = decay
    with pytest.raises(ValueError, match=rf"LAYER_DECAY.BACKBONE is {decay}; give a factor above 0"):
        parameter_groups(tiny_cfg, nn.Linear(1, 1))


def test_a_part_without_recognised_layers_is_refused(tiny_cfg: CfgNode) -> None:
    tiny_cfg.SOLVER.LAYER_DECAY.TEXT_ENCODER = 0.9
    with pytest.raises(ValueError, match="parameters of 'text_encoder.bert' show no layers; set it to 1.0"):
        build_optimizer(tiny_cfg, nn.ModuleDict({"backbone": nn.Linear(1, 1)}))
