"""A model's answers, read in numpy as in torch."""

from __future__ import annotations

import grounding_dino  # noqa: F401
from grounding_dino.exported.description import ClassDescription
from grounding_dino.exported.detections import Answer, best_pairs, caption_queries, joined
from grounding_dino.exported.masks import MaskFrame, resized, with_masks
from grounding_dino.modeling.fixed_classes import FixedClasses
from grounding_dino.modeling.mask_results import MaskResults
from grounding_dino.modeling.postprocess import postprocess_picture
from grounding_dino.structures import Predictions, Prompt
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SIZE, SEEN, QUERIES, LIMIT = (60, 81), (30, 41), 12, 20
INPUTS = {"height": SIZE[0], "width": SIZE[1]}


def predictions(columns: int, seed: int = 0, masks: tuple[int, int] | None = None) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits, boxes = (torch.randn(QUERIES, n, generator=generator) for n in (columns, 4))
    drawn = None if masks is None else 3 * torch.randn(QUERIES, *masks, generator=generator)
    return Predictions(logits, boxes.sigmoid(), drawn)


def answer_of(raw: Predictions) -> Answer:
    masks = None if raw.pred_masks is None else raw.pred_masks.numpy()
    return Answer(raw.pred_logits.numpy(), raw.pred_boxes.numpy(), masks)


def check_equal(ours: object, expected: object, *names: str) -> None:
    for name in ("scores", "query_indices", *names):
        np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), atol=1e-6)
    np.testing.assert_allclose(ours.pred_boxes, expected.pred_boxes.tensor, atol=1e-4)  # type: ignore[attr-defined]


def prompts_of(names: list[str], names_per_prompt: int) -> list[Prompt]:
    return build_category_prompts(names, build_tokenizer(), names_per_prompt=names_per_prompt)


@pytest.mark.parametrize("names_per_prompt", [0, 2])
@pytest.mark.parametrize("names", [["cat", "red dog", "t.v."], ["cat", "dog", "Cat"]])
def test_the_best_pairs_are_torchs(names: list[str], names_per_prompt: int) -> None:
    found = [(p, predictions(len(p) + 1, i)) for i, p in enumerate(prompts_of(names, names_per_prompt))]
    expected = postprocess_picture(found, {**INPUTS, "categories": names}, SEEN, LIMIT)["instances"]
    parts = [best_pairs(answer_of(raw), prompt, SIZE, LIMIT) for prompt, raw in found]
    ours = joined(parts, LIMIT)
    written = [[names[i].lower() for i in found.pred_classes.tolist()] for found in (ours, expected)]
    assert written[0] == written[1]  # torch sorts equal scores as it likes
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-6)


def test_the_queries_of_a_caption_are_torchs() -> None:
    prompt = build_caption_prompt("a cat", build_tokenizer())
    raw = predictions(len(prompt))
    expected = postprocess_picture([(prompt, raw)], {**INPUTS, "caption": "a cat"}, SEEN, LIMIT)["instances"]
    check_equal(caption_queries(answer_of(raw), SIZE), expected, "token_logits")


@pytest.mark.parametrize("exclusive", [False, True])
def test_fixed_classes_are_read_as_in_torch(exclusive: bool) -> None:
    columns = (4, 0, 2)
    raw = predictions(6)
    expected = postprocess_picture([(FixedClasses(columns, exclusive), raw)], INPUTS, SEEN, LIMIT)["instances"]
    described = ClassDescription(("a", "b", "c"), columns, exclusive)
    check_equal(best_pairs(answer_of(raw), described, SIZE, LIMIT), expected, "pred_classes")


@pytest.mark.parametrize("mask_scores", [False, True])
@pytest.mark.parametrize("frame", [SEEN, (32, 64)])
def test_masks_lie_as_in_torch(frame: tuple[int, int], mask_scores: bool) -> None:
    classes = FixedClasses((0, 1, 2))
    raw = predictions(3, masks=(-(-frame[0] // 4), -(-frame[1] // 4)))
    options = MaskResults(mask_scores=mask_scores)
    expected = postprocess_picture([(classes, raw)], INPUTS, SEEN, LIMIT, options, frame)["instances"]
    pairs = best_pairs(answer_of(raw), ClassDescription(("a", "b", "c"), (0, 1, 2)), SIZE, LIMIT)
    ours = with_masks(pairs, MaskFrame(frame, SEEN, SIZE), mask_scores)
    np.testing.assert_array_equal(ours.pred_classes, expected.pred_classes)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-5)
    assert ours.pred_masks is not None and (ours.pred_masks != expected.pred_masks.numpy()).mean() < 1e-5
    assert with_masks(pairs[:0], MaskFrame(frame, SEEN, SIZE), mask_scores).pred_masks.shape == (0, *SIZE)


@pytest.mark.parametrize("size", [(7, 9), (14, 18), (20, 5), (3, 31)])
def test_maps_are_resized_as_in_torch(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resized(maps.numpy(), size), expected, atol=1e-5)


def test_some_of_the_detections() -> None:
    raw = predictions(6)
    found = best_pairs(answer_of(raw), ClassDescription(("a", "b"), (0, 1)), SIZE, LIMIT)
    assert (
        len(found[:3]) == 3
        and len(found[found.scores > 2]) == 0
        and set(found[:1].get_fields()) == {"pred_boxes", "scores", "pred_classes", "query_indices"}
    )


@pytest.mark.parametrize("field", ["pred_logits", "pred_boxes", "pred_masks", "pred_quality"])
def test_nan_is_refused_and_hidden_tokens_are_not(field: str) -> None:
    parts = {"pred_logits": np.zeros((2, 3)), "pred_boxes": np.zeros((2, 4)), "pred_masks": np.zeros((2, 1, 1))}
    parts["pred_quality"] = np.zeros(2)
    parts["pred_logits"][:, 2] = -np.inf
    Answer(**parts).check_finite()
    parts[field].flat[0] = np.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        Answer(**parts).check_finite()
