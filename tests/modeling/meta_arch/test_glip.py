"""A whole tiny GLIP: batches, pictures smaller than a cell, training. Names in chunks: test_glip_chunks.py."""

import math
from collections.abc import Callable
from typing import Any

import grounding_dino.modeling  # noqa: F401

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

MakePicture = Callable[..., dict[str, Any]]
TOLERANCE = 1e-5  # of scores, and of boxes relative to the picture's size
INPUTS: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((64, 96), {"categories": ["cat", "red dog"]}),
    ((40, 51), {"categories": ["bus"]}),  # padded to the size of the one before
    ((96, 64), {"caption": "a zebra on the long road near a small house"}),
    ((33, 77), {"categories": ["traffic light", "person", "cat", "frisbee"], "names_per_prompt": 3}),
    ((64, 70), {"caption": "a red dog runs", "phrases": [(2, 9), (0, 9)]}),
    ((1, 1), {"categories": ["cat"]}),
]


def inputs_of(picture: MakePicture) -> list[dict[str, Any]]:
    """Pictures of different sizes with prompts of different lengths and kinds."""
    return [picture(h, w, seed=i, **rest) for i, ((h, w), rest) in enumerate(INPUTS)]


def assert_same_detections(first: Instances, second: Instances) -> None:
    assert len(first) == len(second) > 0
    size = max(first.image_size)
    torch.testing.assert_close(first.scores, second.scores, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(first.query_indices, second.query_indices)
    torch.testing.assert_close(first.pred_boxes.tensor / size, second.pred_boxes.tensor / size, atol=TOLERANCE, rtol=0)
    if first.has("pred_classes"):
        assert torch.equal(first.pred_classes, second.pred_classes)


@torch.no_grad()
def test_a_result_does_not_depend_on_the_batch(tiny_glip: nn.Module, picture: MakePicture) -> None:
    inputs = inputs_of(picture)
    together = tiny_glip(inputs)
    for one, in_batch in zip(inputs, together, strict=True):
        (alone,) = tiny_glip([one])
        assert list(alone) == list(in_batch)
        for name, instances in alone.items():
            assert_same_detections(instances, in_batch[name])
    scores = torch.cat([result["instances"].scores for result in together])
    assert scores.max() - scores.min() > 0.1  # or the comparison would say nothing


@torch.no_grad()
def test_padding_before_the_backbone_makes_a_difference(
    tiny_glip_cfg: CfgNode, tiny_glip: nn.Module, picture: MakePicture
) -> None:
    """As in the authors' code; the configuration says so. Alone, a picture is padded alike."""
    tiny_glip_cfg.MODEL.PAD_BEFORE_BACKBONE_ON = True
    model = build_model(tiny_glip_cfg).eval()
    model.load_state_dict(tiny_glip.state_dict())
    inputs = [picture(64, 96, seed=1, categories=["cat"]), picture(30, 40, seed=2, categories=["cat"])]
    (_, together), (alone,), (plain,) = model(inputs), model(inputs[1:]), tiny_glip(inputs[1:])
    assert_same_detections(alone["instances"], plain["instances"])
    count = min(len(together["instances"]), len(alone["instances"]))
    difference = together["instances"].scores[:count] - alone["instances"].scores[:count]
    assert difference.abs().max() > 1e-3
    assert together["instances"].image_size == (30, 40)
    right, bottom = together["instances"].pred_boxes.tensor[:, 2:].amax(0)
    assert right <= 40 and bottom <= 30


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (31, 45), (1, 200), (129, 5)])
def test_pictures_smaller_than_a_cell_of_the_coarsest_level(
    tiny_glip: nn.Module, picture: MakePicture, size: tuple[int, int]
) -> None:
    """Levels of stride 128 have a single place then, whose anchor is larger than the picture."""
    (result,) = tiny_glip([picture(*size, categories=["cat", "dog"])])
    instances = result["instances"]
    assert instances.image_size == size and len(instances) > 0
    left, top, right, bottom = instances.pred_boxes.tensor.unbind(-1)
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[1]).all() and (bottom <= size[0]).all()
    assert (right - left >= 1).all() and (bottom - top >= 1).all()
    assert instances.scores.isfinite().all()


def test_training_on_a_picture_smaller_than_a_cell(tiny_glip: nn.Module, annotated: MakePicture) -> None:
    """Also where no place learns its object, which all anchors of the finest level hold alike."""
    losses = tiny_glip.train()([annotated(20, 31, [[2.0, 3, 28, 17]], [0], categories=["cat"])])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_class"] > 0 and losses["loss_giou"] == losses["loss_centerness"] == 0


@torch.no_grad()
def test_maps_of_a_picture_are_shared_by_its_prompts(tiny_glip: nn.Module, picture: MakePicture) -> None:
    """Of a batch too, where pictures have different numbers of prompts."""
    backbone, tower = [], []
    tiny_glip.backbone.register_forward_pre_hook(lambda _, args: backbone.append(len(args[0])))
    tiny_glip.tower.register_forward_pre_hook(lambda _, args: tower.append(len(args[0][0])))
    names = ["cat", "dog", "bus"]
    inputs = [picture(64, 64, seed=i, categories=names[: i + 1], names_per_prompt=1) for i in range(3)]
    results = tiny_glip(inputs)
    assert (backbone, tower) == ([3], [3, 3])
    assert [int(result["instances"].pred_classes.max()) for result in results] == [0, 1, 2]


def test_every_parameter_has_a_gradient(tiny_glip: nn.Module, annotated: MakePicture) -> None:
    """With objects or without; or the processes of a distributed training would wait for each other forever."""
    boxes = [[5.0, 5, 30, 40], [20, 10, 60, 50]]
    batches = [
        [
            annotated(64, 80, boxes, [1, 0], seed=1, categories=["cat", "red dog"]),
            annotated(48, 60, [], [], seed=2, categories=["bus", "cat"]),
            annotated(60, 44, boxes[:1], [0], seed=3, caption="a red dog runs", phrases=[(2, 9)]),
        ],
        [annotated(64, 80, [], [], seed=1, categories=["cat"]), annotated(48, 60, [], [], seed=2, caption="a bus")],
    ]
    tiny_glip.train()
    for batch in batches:
        tiny_glip.zero_grad()
        losses = tiny_glip(batch)
        assert set(losses) == {"loss_class", "loss_giou", "loss_centerness"}
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert [name for name, p in tiny_glip.named_parameters() if p.requires_grad and p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in tiny_glip.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_one_picture_finds_its_objects(
    tiny_glip_cfg: CfgNode, annotated: MakePicture, precision: str
) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_glip_cfg).train()
    image = annotated(64, 96, [[10.0, 12, 40, 50], [50, 5, 90, 60]], [1, 0], seed=1, categories=["cat", "dog"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(60):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = torch.stack(list(model([image]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert math.isfinite(totals[-1]) and totals[-1] < totals[0] / 2
    with torch.no_grad():
        (result,) = model.eval()([{k: v for k, v in image.items() if k != "instances"}])
    for box, category in zip(image["instances"].gt_boxes.tensor, image["instances"].gt_classes):
        own = result["instances"][result["instances"].pred_classes == category]
        assert (own.pred_boxes.tensor[0] - box).abs().max() < 10
