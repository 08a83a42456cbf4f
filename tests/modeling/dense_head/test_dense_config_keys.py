"""Every key of MODEL.DENSE_HEAD, and every other that GLIP alone reads, reaches its part and changes what it does."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.layers.bi_attention import BiAttention

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor

Build = Callable[..., Any]
HEAD, LOSS, TEXT = "MODEL.DENSE_HEAD", "MODEL.LOSS", "MODEL.TEXT_ENCODER"


@pytest.fixture
def build(tiny_glip_cfg: CfgNode) -> Build:
    """`build(*opts)`: a tiny GLIP whose weights hang on their names and shapes alone, as no other number may count."""

    def make(*opts: Any) -> Any:
        cfg = tiny_glip_cfg.clone()
        cfg.merge_from_list(list(opts))
        model = build_model(cfg)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if (parameter.dim() > 1 or name.endswith("bias")) and not name.startswith("prompt_vectors"):
                    torch.manual_seed(zlib.crc32(name.encode()))
                    parameter.normal_(std=0.2)
            model.head.bias.zero_()
        return model.eval()

    return make


def picture() -> dict[str, Any]:
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 12, 50, 44], [60, 20, 94, 60]]))
    instances.gt_classes = torch.tensor([0, 1])
    torch.manual_seed(1)
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    return {"image": image, "categories": ["cat", "red dog"], "instances": instances}


@torch.no_grad()
def detections(model: Any) -> list[Tensor]:
    found = model([picture()])[0]["instances"]
    return [found.pred_boxes.tensor, found.scores, found.pred_classes]


@torch.no_grad()
def losses(model: Any, seed: int = 0) -> dict[str, float]:
    model.train()
    inputs = [picture()]
    torch.manual_seed(seed)
    values = {name: float(value) for name, value in model(inputs).items()}
    model.eval()
    return values


def differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, second, strict=True))


DETECTIONS: dict[str, Any] = {
    f"{HEAD}.IN_FEATURES": ["stage3", "stage4"],
    f"{HEAD}.NUM_BLOCKS": 2,
    f"{HEAD}.NUM_GROUPS": 4,
    f"{HEAD}.TEXT_FUSION.ENABLED_ON": False,
    f"{HEAD}.TEXT_FUSION.EMBED_DIM": 64,
    f"{HEAD}.TEXT_FUSION.NUM_HEADS": 4,
    f"{HEAD}.TEXT_FUSION.INIT_SCALE": 0.1,
    f"{HEAD}.ANCHOR_SCALE": 4.0,
    f"{HEAD}.SCORE_THRESHOLD": 0.55,
    f"{HEAD}.PRE_NMS_TOPK": 5,
    f"{HEAD}.NMS_THRESHOLD": 0.9,
    f"{HEAD}.NMS_LAST_PIXEL_ON": False,
    "TEST.DETECTIONS_PER_IMAGE": 7,
    f"{TEXT}.SUB_SENTENCE_ON": True,
}
LOSSES: dict[str, tuple[Any, set[str]]] = {
    f"{HEAD}.NUM_CANDIDATES": (3, {"loss_class", "loss_giou", "loss_centerness"}),
    f"{LOSS}.FOCAL_ALPHA": (0.5, {"loss_class"}),
    f"{LOSS}.FOCAL_GAMMA": (1.0, {"loss_class"}),
}
WEIGHTS = {f"{LOSS}.{name}_WEIGHT": f"loss_{name.lower()}" for name in ("CLASS", "GIOU", "CENTERNESS")}
DROPPED = {f"{HEAD}.TEXT_FUSION.DROPOUT", f"{HEAD}.TEXT_FUSION.DROP_PATH_RATE"}
OTHERS = {f"{HEAD}.{name}" for name in ("ACTIVATION_CHECKPOINTING_ON", "PROMPT_VECTORS", "RANK_BY_CENTERNESS_ON")}


def test_every_key_of_the_head_is_tested_here(tiny_glip_cfg: CfgNode) -> None:
    def keys(node: CfgNode, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            if isinstance(value, CfgNode):
                yield from keys(value, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}"

    tested = {*DETECTIONS, *LOSSES, *DROPPED, *OTHERS}
    assert set(keys(tiny_glip_cfg.MODEL.DENSE_HEAD, HEAD)) == {key for key in tested if key.startswith(HEAD)}


@pytest.mark.parametrize("key", DETECTIONS)
def test_keys_that_change_detections(build: Build, key: str) -> None:
    plain = detections(build())
    assert len(plain[0]) > 7 and not differ(plain, detections(build()))
    assert differ(plain, detections(build(key, DETECTIONS[key])))


def test_ranking_counts_where_a_level_keeps_few(build: Build) -> None:
    opts = (f"{HEAD}.PRE_NMS_TOPK", 20, f"{HEAD}.NMS_THRESHOLD", 1.0)
    without = build(*opts, f"{HEAD}.RANK_BY_CENTERNESS_ON", False)
    assert differ(detections(build(*opts)), detections(without))


@pytest.mark.parametrize("key", LOSSES)
def test_keys_that_change_losses(build: Build, key: str) -> None:
    value, changed = LOSSES[key]
    before, after = losses(build()), losses(build(key, value))
    assert all((before[name] != after[name]) == (name in changed) for name in before)


@pytest.mark.parametrize(("key", "loss"), WEIGHTS.items())
def test_weights_of_the_losses(build: Build, key: str, loss: str) -> None:
    one, three = losses(build(key, 1.0)), losses(build(key, 3.0))
    for name, value in one.items():
        assert value > 0 and three[name] == pytest.approx((3 if name == loss else 1) * value, rel=1e-5)


def test_dropout_and_drop_path_of_the_fusion(build: Build) -> None:
    def outcomes(*opts: Any) -> int:
        model = build(*opts)
        return len({tuple(losses(model, seed).values()) for seed in range(6)})

    assert outcomes() == 1 < min(outcomes(key, 0.5) for key in DROPPED)
    attention = build(f"{HEAD}.TEXT_FUSION.DROPOUT", 0.3).tower.blocks[0].fusion.attention
    assert isinstance(attention, BiAttention) and attention.dropout == 0.3
    assert build(f"{HEAD}.TEXT_FUSION.DROP_PATH_RATE", 0.3).tower.blocks[0].fusion.drop_path.p == 0.3


def test_prompt_vectors_are_added_to_the_text(build: Build) -> None:
    model = build(f"{HEAD}.PROMPT_VECTORS", 16)
    assert not differ(detections(build()), detections(model)), "zeros change nothing"
    with torch.no_grad():
        model.prompt_vectors.weight.normal_()
    assert differ(detections(build()), detections(model))


def test_checkpointing_of_the_tower(build: Build) -> None:
    assert build(f"{HEAD}.ACTIVATION_CHECKPOINTING_ON", True).tower.activation_checkpointing
    assert not build().tower.activation_checkpointing
