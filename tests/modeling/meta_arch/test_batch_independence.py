"""A picture's detections do not depend on its batch."""

from collections.abc import Callable
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

MakePicture = Callable[..., dict[str, Any]]
TOLERANCE = 1e-3  # of scores, and of boxes relative to the picture's size


PROMPTS: list[dict[str, Any]] = [
    {"categories": ["cat", "red dog"]},
    {"categories": ["bus"]},
    {"caption": "a zebra on the long road near a small house"},
    {"categories": ["traffic light", "person", "cat", "frisbee"]},
]
SIZES = [(64, 96), (40, 51), (96, 64), (33, 77)]


def different_pictures(
    picture: MakePicture, sizes: list[tuple[int, int]] = SIZES, seeds: tuple[int, ...] = (1, 2, 3, 4)
) -> list[dict[str, Any]]:
    """Four sizes and prompts, one of them a caption."""
    return [picture(h, w, seed=seed, **prompt) for (h, w), seed, prompt in zip(sizes, seeds, PROMPTS, strict=True)]


def num_image_tokens(size: tuple[int, int]) -> int:
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in (8, 16, 32, 64))


def assert_same_detections(first: Instances, second: Instances) -> None:
    """Each detection of one has its like in the other. (Those of equal score may come in any order.)"""
    assert len(first) == len(second) > 0
    size = max(first.image_size)
    torch.testing.assert_close(first.scores, second.scores, atol=TOLERANCE, rtol=0)
    close = (first.pred_boxes.tensor[:, None] - second.pred_boxes.tensor).abs().amax(-1) < TOLERANCE * size
    close &= (first.scores[:, None] - second.scores).abs() < TOLERANCE
    if first.has("pred_classes"):
        close &= first.pred_classes[:, None] == second.pred_classes
    assert close.any(0).all() and close.any(1).all(), f"{(~close.any(1)).sum()} of {len(first)} detections differ"


@torch.no_grad()
def check(model: torch.nn.Module, inputs: list[dict[str, Any]]) -> list[Instances]:
    together = [result["instances"] for result in model(inputs)]
    for one, in_batch in zip(inputs, together, strict=True):
        (alone,) = model([one])
        assert_same_detections(alone["instances"], in_batch)
    return together


def test_tiny_model(tiny_model: torch.nn.Module, picture: MakePicture) -> None:
    found = check(tiny_model, different_pictures(picture))
    spread = torch.cat([f.scores for f in found])
    assert spread.max() - spread.min() > 0.05  # or the comparison would say nothing


def test_fewer_image_tokens_than_queries(tiny_cfg: CfgNode, tiny_model: torch.nn.Module, picture: MakePicture) -> None:
    """70 queries, of which the second and the fourth picture alone have too few image tokens."""
    tiny_cfg.MODEL.QUERY_SELECTION.NUM_QUERIES = 70
    model = build_model(tiny_cfg).eval()
    state = {**tiny_model.state_dict(), "query_selection.content.weight": torch.randn(70, 64)}
    model.load_state_dict(state)
    inputs = different_pictures(picture)
    found = check(model, inputs)
    tokens = [num_image_tokens(size) for size in SIZES]
    assert [n < 70 for n in tokens] == [False, True, False, False]
    assert len(found[1]) == tokens[1]  # one category: no detection stands for padding


def test_padding_before_the_backbone_makes_a_difference(
    tiny_cfg: CfgNode, tiny_model: torch.nn.Module, picture: MakePicture
) -> None:
    """As in the authors' code; the configuration says so."""
    tiny_cfg.MODEL.PAD_BEFORE_BACKBONE_ON = True
    model = build_model(tiny_cfg).eval()
    model.load_state_dict(tiny_model.state_dict())
    inputs = different_pictures(picture)
    with torch.no_grad():
        together, alone, plain = model(inputs), model(inputs[1:2]), tiny_model(inputs[1:2])
    difference = (together[1]["instances"].scores - alone[0]["instances"].scores).abs().max()
    assert difference > TOLERANCE
    assert_same_detections(alone[0]["instances"], plain[0]["instances"])  # alone there is no padding


def test_equal_sizes_share_the_backbone(tiny_model: torch.nn.Module, picture: MakePicture) -> None:
    sizes: list[tuple[int, ...]] = []
    handle = tiny_model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    inputs = [picture(h, w, seed=i, categories=["cat"]) for i, (h, w) in enumerate([(40, 50), (64, 40), (40, 50)])]
    with torch.no_grad():
        tiny_model(inputs)
    handle.remove()
    assert sizes == [(2, 3, 40, 50), (1, 3, 64, 40)]


@pytest.mark.slow
def test_swin_t(recipe_weights, picture: MakePicture) -> None:
    """Full size, with the recipe's weights, whose features and scores vary over picture and text.

    All pairs of query and category are compared, because the best 300 saturate at a score of 1. Float noise moves the
    ranking's scores by 3e-5; where two of them are closer, a whole query changes. Hence few queries, and seeds with
    which the best 101 scores of every picture keep 2e-3 apart. The second picture has fewer tokens than queries.
    """
    cfg = load_cfg("swin_t_ogc", ["MODEL.DEVICE", "cpu", "MODEL.DENOISING.ENABLED_ON", False])
    cfg.MODEL.QUERY_SELECTION.NUM_QUERIES = 100
    cfg.TEST.DETECTIONS_PER_IMAGE = 10000
    model = build_model(cfg).eval()
    weights = recipe_weights("grounding_dino", "manifest_swin_t_ogc.json")
    state = dict(translate_checkpoint({"model": weights}, "the recipe").state)
    state["query_selection.content.weight"] = state["query_selection.content.weight"][:100]
    model.load_state_dict(state)
    sizes = [(192, 256), (48, 60), (260, 200), (99, 231)]
    found = check(model, different_pictures(picture, sizes, seeds=(7, 3, 4, 3)))
    assert [len(f) for f in found] == [200, num_image_tokens(sizes[1]), 100, 400]
    assert all(f.scores.std() > 0.1 for f in found)
