"""From dense predictions to detections: thresholds, suppression, several prompts, captions, sizes."""

import dataclasses
import math
from typing import Any

import grounding_dino  # noqa: F401
from grounding_dino.modeling.dense_head import detections
from grounding_dino.modeling.dense_head.anchors import clip_boxes, decode_boxes, place_anchors
from grounding_dino.modeling.dense_head.detections import Candidates, DenseDetections
from grounding_dino.structures import DensePredictions, Prompt
from grounding_dino.text.category_scores import category_scores
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

STRIDES, SIZES = [16, 32, 64], ((6, 8), (3, 4), (2, 2))
PICTURE = (90, 120)
NUM_PLACES = 64
CATEGORIES = ["cat", "red dog", "bus"]


def anchors() -> list[Tensor]:
    return place_anchors(SIZES, STRIDES, 2.0, torch.zeros(1))


def predictions(num_tokens: int, seed: int = 0, shift: float = 0.0) -> DensePredictions:
    """Of one picture; `shift` moves all logits of tokens."""
    generator = torch.Generator().manual_seed(seed)

    def parts(*shape: int) -> list[Tensor]:
        return [torch.randn(h * w, *shape, generator=generator) for h, w in SIZES]

    return DensePredictions([2 * level + shift for level in parts(num_tokens)], parts(4), parts(), SIZES)


def prompts_of(names: list[str], names_per_prompt: int = 0) -> list[Prompt]:
    return build_category_prompts(names, build_tokenizer(), names_per_prompt=names_per_prompt)


def found_for(names: list[str], names_per_prompt: int = 0) -> list[tuple[Prompt, DensePredictions]]:
    return [(p, predictions(len(p), seed)) for seed, p in enumerate(prompts_of(names, names_per_prompt))]


def detect(found: list[tuple[Prompt, DensePredictions]], inputs: dict[str, Any], **settings: Any) -> dict:
    return DenseDetections(**settings).of_picture(found, anchors(), inputs, PICTURE)


def plain_pairs(prompt: Prompt, raw: DensePredictions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores before and after centerness, and categories of all pairs, place by place."""
    before = category_scores(torch.cat(raw.token_logits), prompt)
    after = (before * torch.cat(raw.centerness).sigmoid()[:, None]).sqrt()
    boxes = clip_boxes(decode_boxes(torch.cat(raw.box_deltas), torch.cat(anchors())), PICTURE)
    count = before.shape[1]
    return boxes.repeat_interleave(count, 0), before.flatten(), after.flatten(), torch.arange(count).repeat(len(boxes))


def as_set(instances: Instances) -> set[tuple[int, int]]:
    """(place, class) of each detection."""
    return set(zip(instances.query_indices.tolist(), instances.pred_classes.tolist()))


# -------------------------------------------------------------------------------------------------- categories


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.6])
def test_equals_batched_suppression_of_all_pairs(threshold: float) -> None:
    found = found_for(CATEGORIES)
    boxes, before, after, classes = plain_pairs(*found[0])
    candidates = (before > 0.05).nonzero()[:, 0]
    kept = candidates[
        batched_nms(boxes[candidates].double(), after[candidates].double(), classes[candidates], threshold)
    ]
    assert 20 < len(kept) < len(candidates)
    instances = detect(found, {"categories": CATEGORIES}, nms_threshold=threshold, detections_per_image=20)["instances"]
    assert instances.image_size == PICTURE
    torch.testing.assert_close(instances.pred_boxes.tensor, boxes[kept[:20]])
    torch.testing.assert_close(instances.scores, after[kept[:20]])
    assert torch.equal(instances.pred_classes, classes[kept[:20]])
    assert torch.equal(instances.query_indices, kept[:20] // len(CATEGORIES))


def test_suppression_keeps_apart_very_many_categories() -> None:
    """Offsets of a million pixels leave float32 no digits for a pixel, which decides here."""
    torch.manual_seed(0)
    boxes = torch.rand(400, 2) * 1200
    boxes = torch.cat((boxes, boxes + 5 + 30 * torch.rand(400, 2)), 1).repeat(2, 1) + torch.rand(800, 1) * 8
    classes, scores = torch.full((800,), 1202), torch.rand(800)
    kept = DenseDetections().suppress(Candidates(boxes, scores, classes, torch.arange(800)))
    expected = batched_nms(boxes.double(), scores.double(), torch.zeros(800, dtype=torch.int64), 0.6)
    assert 400 < len(expected) < 800
    assert torch.equal(kept.places, expected)


def test_categories_below_the_threshold_are_dropped_before_centerness() -> None:
    (prompt, raw), *_ = found = found_for(CATEGORIES)
    _, before, after, _ = plain_pairs(prompt, raw)
    settings = {"score_threshold": 0.6, "nms_threshold": 1.0, "detections_per_image": 1000}
    instances = detect(found, {"categories": CATEGORIES}, **settings)["instances"]
    assert len(instances) == (before > 0.6).sum() > 0
    assert instances.scores.min() < 0.6 and after[before <= 0.6].max() > 0.6


def test_ranking_with_and_without_centerness() -> None:
    """It decides which pairs of a level come before the suppression."""
    (prompt, raw), *_ = found = found_for(CATEGORIES)
    _, before, after, classes = plain_pairs(prompt, raw)
    chosen = {}
    for on in (True, False):
        settings = {"rank_by_centerness": on, "pre_nms_topk": 5, "nms_threshold": 1.0}
        instances = detect(found, {"categories": CATEGORIES}, **settings)["instances"]
        assert len(instances) == 15
        expected = set()
        first = 0
        for h, w in SIZES:
            rows = slice(first * len(CATEGORIES), (first + h * w) * len(CATEGORIES))
            top = (after if on else before)[rows].topk(5).indices + rows.start
            expected |= set(zip((top // len(CATEGORIES)).tolist(), classes[top].tolist()))
            first += h * w
        chosen[on] = as_set(instances)
        assert chosen[on] == expected
    assert chosen[True] != chosen[False]


def test_overlap_with_and_without_the_last_pixel() -> None:
    """10 x 10 and 10 x 6 pixels overlap by 0.6 as a whole, and by 45 / 81 without their last ones."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30], [20, 20, 30, 26.5]])
    candidates = Candidates(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 1]), torch.arange(4))
    assert float(box_iou(boxes[:1], boxes[1:2])) == pytest.approx(0.6)
    for threshold, with_last, without in ((0.62, [0, 1, 2], [0, 1, 2, 3]), (0.58, [0, 2], [0, 1, 2])):
        for on, expected in ((True, with_last), (False, without)):
            kept = DenseDetections(nms_threshold=threshold, nms_last_pixel=on).suppress(candidates)
            assert kept.places.tolist() == expected


def test_boxes_of_one_pixel_do_not_break_the_suppression() -> None:
    """Without its last pixel such a box has no area, and overlaps nothing."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [3, 3, 9, 9]])
    candidates = Candidates(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert DenseDetections(nms_last_pixel=True).suppress(candidates).places.tolist() == [0, 2]
    assert DenseDetections(nms_last_pixel=False).suppress(candidates).places.tolist() == [0, 1, 2]


def test_equal_scores_are_taken_in_the_order_of_places_and_categories() -> None:
    """Also those at the end of what a level may keep, and names that are written twice."""
    names = ["cat", "dog", "cat"]
    (prompt,) = prompts_of(names)
    raw = predictions(len(prompt))
    level = DensePredictions(
        [torch.ones_like(part) for part in raw.token_logits],
        [part * 0 for part in raw.box_deltas],
        [part * 0 for part in raw.centerness],
        SIZES,
    )
    settings = {"pre_nms_topk": 7, "nms_threshold": 1.0, "detections_per_image": 14}
    instances = detect([(prompt, level)], {"categories": names}, **settings)["instances"]
    pairs = list(zip(instances.query_indices.tolist(), instances.pred_classes.tolist()))
    of_level = [(place, category) for place in range(3) for category in range(3)][:7]
    assert pairs == [*of_level, *((48 + place, category) for place, category in of_level)]


def test_chunks_equal_separate_runs_merged_before_the_suppression() -> None:
    """Three prompts of a name or two: the same pairs, each with the index of its name in the whole list."""
    names = [*CATEGORIES, "tree", "traffic light"]
    found = found_for(names, names_per_prompt=2)
    assert [prompt.category_indices for prompt, _ in found] == [(0, 1), (2, 3), (4,)]
    parts = []
    settings = {"score_threshold": 0.05, "pre_nms_topk": 1000}
    for prompt, raw in found:
        detections = DenseDetections(**settings)
        scores = [category_scores(level, prompt) for level in raw.token_logits]
        own = detections.candidates(scores, raw, anchors(), PICTURE)
        parts.append(dataclasses.replace(own, classes=torch.tensor(prompt.category_indices)[own.classes]))
    merged = Candidates(
        *(torch.cat([getattr(p, field.name) for p in parts]) for field in dataclasses.fields(Candidates))
    )
    kept = DenseDetections(**settings).suppress(merged)
    answer = detect(found, {"categories": names}, detections_per_image=30, **settings)
    assert len(answer["instances"]) == 30 < len(kept.scores)
    torch.testing.assert_close(answer["instances"].pred_boxes.tensor, kept.boxes[:30])
    assert torch.equal(answer["instances"].scores, kept.scores[:30])
    assert torch.equal(answer["instances"].pred_classes, kept.classes[:30])
    assert set(answer["instances"].pred_classes.tolist()) == set(range(5))


def test_candidates_are_the_best_of_every_prompt() -> None:
    found = found_for(CATEGORIES, names_per_prompt=1)
    answer = detect(found, {"categories": CATEGORIES}, detections_per_image=4)
    assert len(answer["instances"]) == 4 and len(answer["candidates"]) == 12
    assert answer["candidates"].pred_classes.bincount().tolist() == [4, 4, 4]
    assert (answer["candidates"].scores.diff() <= 0).all()
    assert torch.equal(answer["instances"].scores, answer["candidates"].scores[:4])
    for index, part in enumerate(found):
        alone = detect([part], {"categories": CATEGORIES}, detections_per_image=4)
        assert list(alone) == ["instances"]
        own = answer["candidates"][answer["candidates"].pred_classes == index]
        assert torch.equal(own.scores, alone["instances"].scores)


# ------------------------------------------------------------------------------------- expressions and captions


@pytest.mark.parametrize("token_score", ["mean", "max"])
def test_expressions_of_different_prompts_do_not_compete(token_score: str) -> None:
    """However low they score, each has its boxes."""
    names = ["a cat on the left", "the red dog"]
    strong, weak = prompts_of(names, names_per_prompt=1)
    found = [(strong, predictions(len(strong), 1, shift=5)), (weak, predictions(len(weak), 2, shift=-12))]
    inputs = {"categories": names, "referring": True, "token_score": token_score}
    answer = detect(found, inputs, detections_per_image=3)
    assert list(answer) == ["instances"]
    assert answer["instances"].pred_classes.tolist() == [0, 0, 0, 1, 1, 1]
    scores = torch.cat(found[1][1].token_logits).sigmoid()
    scores = scores[:, 1:4].mean(1) if token_score == "mean" else scores.amax(1)
    best = (scores * torch.cat(found[1][1].centerness).sigmoid()).sqrt()
    assert answer["instances"].scores[3] == pytest.approx(best.max().item())
    assert answer["instances"].query_indices[3] == best.argmax()
    assert set(detect(found, {"categories": names}, detections_per_image=3)["instances"].pred_classes.tolist()) == {0}


def test_phrases_have_their_own_boxes_phrase_by_phrase() -> None:
    """A phrase that scores low everywhere still has its best places, which no other phrase crowds out."""
    spans = [(0, 5), [(9, 14), (0, 5)]]
    inputs = {"caption": "a cat on a mat", "phrases": spans}
    prompt = build_caption_prompt(inputs["caption"], build_tokenizer(), phrases=spans)
    raw = predictions(len(prompt))
    columns = [[1, 2], [1, 2, 4, 5]]  # [CLS] a cat on a mat . [SEP]
    for level in raw.token_logits:
        level[:, 4:6] -= 14  # the second phrase is half as good at most
    settings = {"detections_per_image": 4, "pre_nms_topk": 6, "nms_threshold": 0.5}
    instances = detect([(prompt, raw)], inputs, **settings)["instances"]
    assert instances.pred_classes.tolist() == [0] * 4 + [1] * 4
    boxes = clip_boxes(decode_boxes(torch.cat(raw.box_deltas), torch.cat(anchors())), PICTURE)
    centerness = torch.cat(raw.centerness).sigmoid()
    for phrase, own in enumerate(columns):
        scores = (torch.cat(raw.token_logits).sigmoid()[:, own].mean(1) * centerness).sqrt()
        levels = zip(scores.split([h * w for h, w in SIZES]), (0, 48, 60))
        top = torch.cat([first + level.topk(min(6, len(level))).indices for level, first in levels])
        kept = top[batched_nms(boxes[top].double(), scores[top].double(), torch.zeros_like(top), 0.5)][:4]
        of_phrase = instances[instances.pred_classes == phrase]
        assert torch.equal(of_phrase.query_indices, kept)
        torch.testing.assert_close(of_phrase.scores, scores[kept])
        torch.testing.assert_close(of_phrase.pred_boxes.tensor, boxes[kept])


def test_a_caption_gives_boxes_by_their_best_token() -> None:
    prompt = build_caption_prompt("a cat on a mat", build_tokenizer())
    raw = predictions(len(prompt) + 2)
    for level in raw.token_logits:
        level[:, -2:] = -math.inf  # padding
    instances = detect([(prompt, raw)], {"caption": "a cat on a mat"}, detections_per_image=7)["instances"]
    assert len(instances) == 7 and not instances.has("pred_classes")
    logits = torch.cat(raw.token_logits)
    assert torch.equal(instances.token_logits, logits[instances.query_indices])
    scores = (logits.amax(1).sigmoid() * torch.cat(raw.centerness).sigmoid()).sqrt()
    torch.testing.assert_close(instances.scores, scores[instances.query_indices])
    assert instances.scores[0] == scores.max()


# ------------------------------------------------------------------------------------------------ edges and sizes


@pytest.mark.parametrize(
    "inputs",
    [
        {"categories": CATEGORIES},
        {"categories": CATEGORIES, "names_per_prompt": 1},
        {"categories": CATEGORIES, "referring": True},
        {"caption": "a cat on a mat"},
        {"caption": "a cat on a mat", "phrases": [(0, 5), (9, 14)]},
    ],
    ids=str,
)
def test_nothing_found_has_the_fields_of_something(inputs: dict[str, Any]) -> None:
    if "categories" in inputs:
        prompts = prompts_of(CATEGORIES, inputs.get("names_per_prompt", 0))
    else:
        prompts = [build_caption_prompt(inputs["caption"], build_tokenizer(), phrases=inputs.get("phrases"))]
    empty, full = (detect([(p, predictions(len(p), shift=shift)) for p in prompts], inputs) for shift in (-1000.0, 0.0))
    assert list(empty) == list(full)
    for name, instances in empty.items():
        expected = full[name]
        assert len(instances) == 0 < len(expected)
        assert instances.pred_boxes.tensor.shape == (0, 4)
        assert set(instances.get_fields()) == set(expected.get_fields())
        for field, value in instances.get_fields().items():
            if isinstance(value, Tensor):
                other = expected.get(field)
                assert (value.dtype, value.shape[1:]) == (other.dtype, other.shape[1:]), field


def test_a_level_without_candidates_leaves_the_places_of_others_as_they_are() -> None:
    (prompt, raw), *_ = found = found_for(CATEGORIES)
    raw.token_logits[1].fill_(-100.0)
    places = detect(found, {"categories": CATEGORIES}, nms_threshold=1.0, detections_per_image=1000)["instances"]
    level = torch.bucketize(places.query_indices, torch.tensor([48, 60]), right=True)
    assert level.unique().tolist() == [0, 2]
    assert places.query_indices.max() >= 60


def test_boxes_are_scaled_to_the_output_and_clipped() -> None:
    found = found_for(CATEGORIES)
    same = detect(found, {"categories": CATEGORIES})["instances"]
    scaled = detect(found, {"categories": CATEGORIES, "height": 45, "width": 360})["instances"]
    assert scaled.image_size == (45, 360)
    torch.testing.assert_close(scaled.pred_boxes.tensor, same.pred_boxes.tensor * torch.tensor([3, 0.5, 3, 0.5]))
    assert torch.equal(scaled.scores, same.scores)
    left, top, right, bottom = scaled.pred_boxes.tensor.unbind(-1)
    assert left.min() == top.min() == 0 and right.max() == 360 and bottom.max() == 45
    assert same.pred_boxes.tensor.dtype == torch.float32


def test_half_precision_predictions_are_scored_in_float32() -> None:
    (prompt, raw), *_ = found_for(CATEGORIES)
    half = DensePredictions(
        *([level.bfloat16() for level in part] for part in (raw.token_logits, raw.box_deltas, raw.centerness)), SIZES
    )
    exact = DensePredictions(
        *([level.float() for level in part] for part in (half.token_logits, half.box_deltas, half.centerness)), SIZES
    )
    one, two = (detect([(prompt, each)], {"categories": CATEGORIES})["instances"] for each in (half, exact))
    assert one.scores.dtype == one.pred_boxes.tensor.dtype == torch.float32
    assert torch.equal(one.scores, two.scores) and torch.equal(one.pred_boxes.tensor, two.pred_boxes.tensor)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("token_logits", math.nan),
        ("box_deltas", math.nan),
        ("box_deltas", math.inf),
        ("centerness", math.nan),
        ("centerness", -math.inf),
    ],
)
def test_predictions_that_are_no_numbers_are_refused(part: str, value: float) -> None:
    """They would pass no threshold, and look like a picture without objects."""
    (prompt, raw), *_ = found = found_for(CATEGORIES, names_per_prompt=2)
    getattr(found[-1][1], part)[2][0] = value
    with pytest.raises(FloatingPointError, match=r"scores or boxes that are NaN or infinite.*MODEL.WEIGHTS"):
        detect(found, {"categories": CATEGORIES})


def test_whether_all_is_finite_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all levels of a prompt: on a GPU each answer waits for everything that is under way."""
    found, asked, to_bool = found_for(CATEGORIES, names_per_prompt=1), [], Tensor.__bool__

    def counted(tensor: Tensor) -> bool:
        asked.append(tensor.shape)
        return to_bool(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "__bool__", counted)
        for _, predictions in found:
            detections._check_finite(predictions)
    assert len(found) == len(asked) == 3


def test_configuration(tiny_glip_cfg: CfgNode) -> None:
    head = tiny_glip_cfg.MODEL.DENSE_HEAD
    head.SCORE_THRESHOLD, head.PRE_NMS_TOPK, head.NMS_THRESHOLD = 0.1, 5, 0.7
    head.RANK_BY_CENTERNESS_ON, head.NMS_LAST_PIXEL_ON, tiny_glip_cfg.TEST.DETECTIONS_PER_IMAGE = False, False, 8
    assert DenseDetections.from_config(tiny_glip_cfg) == DenseDetections(0.1, 5, 0.7, False, False, 8)
