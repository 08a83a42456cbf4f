"""A dense detector's answers, read in numpy as in torch."""

from __future__ import annotations

import grounding_dino  # noqa: F401
from grounding_dino.exported.dense import DensePicture, without_overlaps
from grounding_dino.exported.description import DenseDescription
from grounding_dino.exported.detections import Answer, joined
from grounding_dino.modeling.dense_head.anchors import decode_boxes, place_anchors
from grounding_dino.modeling.dense_head.detections import DenseDetections
from grounding_dino.structures import DensePredictions, Prompt
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch
from torchvision.ops import nms

STRIDES, FRAME, SEEN, SIZE = (16, 32, 64), (96, 128), (90, 120), (45, 70)
SIZES = tuple((-(-FRAME[0] // stride), -(-FRAME[1] // stride)) for stride in STRIDES)
ANCHORS = place_anchors(SIZES, STRIDES, 2.0, torch.zeros(1))
LIMIT = 30


def predictions(num_tokens: int, seed: int) -> DensePredictions:
    generator = torch.Generator().manual_seed(seed)

    def parts(*shape: int) -> list[torch.Tensor]:
        return [torch.randn(h * w, *shape, generator=generator) for h, w in SIZES]

    return DensePredictions([2 * level for level in parts(num_tokens)], parts(4), parts(), SIZES)


def answer_of(raw: DensePredictions) -> Answer:
    """As an exported model gives it: boxes cxcywh as shares of the padded picture."""
    corners = decode_boxes(torch.cat(raw.box_deltas), torch.cat(ANCHORS))
    low, high = corners[:, :2], corners[:, 2:]
    boxes = torch.cat(((low + high) / 2, high - low), 1) / torch.tensor([FRAME[1], FRAME[0]] * 2)
    return Answer(torch.cat(raw.token_logits).numpy(), boxes.numpy(), pred_quality=torch.cat(raw.centerness).numpy())


def picture(**settings: object) -> DensePicture:
    return DensePicture(DenseDescription(STRIDES, **settings), FRAME, SEEN, SIZE)  # type: ignore[arg-type]


def found_for(prompts: list[Prompt]) -> list[tuple[Prompt, DensePredictions]]:
    return [(prompt, predictions(len(prompt), seed)) for seed, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank_by_centerness": False, "nms_last_pixel": False},
        {"score_threshold": 0.3, "pre_nms_topk": 7, "nms_threshold": 0.3},
    ],
)
@pytest.mark.parametrize("names_per_prompt", [0, 2])
def test_categories_are_detected_as_in_torch(settings: dict[str, object], names_per_prompt: int) -> None:
    names = ["cat", "red dog", "bus"]
    found = found_for(build_category_prompts(names, build_tokenizer(), names_per_prompt=names_per_prompt))
    torchs = DenseDetections(**settings, detections_per_image=LIMIT)  # type: ignore[arg-type]
    inputs = {"height": SIZE[0], "width": SIZE[1], "categories": names}
    expected = torchs.of_picture(found, ANCHORS, inputs, SEEN)["instances"]
    parts = [picture(**settings).of_categories(answer_of(raw), prompt, LIMIT) for prompt, raw in found]
    ours = joined(parts, LIMIT)
    assert len(ours) == len(expected) > 5
    np.testing.assert_array_equal(ours.pred_classes, expected.pred_classes)
    np.testing.assert_array_equal(ours.query_indices, expected.query_indices)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(ours.pred_boxes, expected.pred_boxes.tensor, atol=1e-4)


def test_a_caption_is_detected_as_in_torch() -> None:
    ((prompt, raw),) = found_for([build_caption_prompt("a cat and a dog", build_tokenizer())])
    torchs = DenseDetections(detections_per_image=LIMIT)
    inputs = {"height": SIZE[0], "width": SIZE[1], "caption": prompt.caption}
    expected = torchs.of_picture([(prompt, raw)], ANCHORS, inputs, SEEN)["instances"]
    ours = picture().of_caption(answer_of(raw), LIMIT)
    np.testing.assert_array_equal(ours.query_indices, expected.query_indices)
    np.testing.assert_allclose(ours.token_logits, expected.token_logits)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-6)


def test_nothing_passes_a_high_threshold() -> None:
    ((prompt, raw),) = found_for(build_category_prompts(["cat"], build_tokenizer()))
    none = picture(score_threshold=1.0).of_categories(answer_of(raw), prompt, LIMIT)
    assert len(none) == 0 and none.pred_boxes.shape == (0, 4) and none.pred_classes is not None


def test_levels_that_do_not_fit_the_picture_are_refused() -> None:
    ((prompt, raw),) = found_for(build_category_prompts(["cat"], build_tokenizer()))
    other = DensePicture(DenseDescription(STRIDES), (128, 128), SEEN, SIZE)
    with pytest.raises(ValueError, match="64 places.* have 84 in a picture of 128 x 128"):
        other.of_categories(answer_of(raw), prompt, LIMIT)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_suppression_is_torchvisions(threshold: float) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (200, 2))
    boxes = np.concatenate((low, low + rng.uniform(0, 30, (200, 2))), axis=1)
    falling = torch.arange(200, 0, -1, dtype=torch.float64)
    expected = nms(torch.from_numpy(boxes), falling, threshold)
    np.testing.assert_array_equal(without_overlaps(boxes, threshold), expected)
    assert without_overlaps(boxes[:0], threshold).shape == (0,)
