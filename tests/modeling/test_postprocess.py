"""Predictions to instances: the authors' COCO numbers, several prompts, captions, clipping."""

import json
from pathlib import Path

import grounding_dino  # noqa: F401
from grounding_dino.modeling.postprocess import (
    caption_instances,
    category_instances,
    postprocess_picture,
    scale_boxes,
)
from grounding_dino.structures import Predictions
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

COCO_ID_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids of COCO that no category has
COCO_IDS = np.array([i for i in range(1, 91) if i not in COCO_ID_GAPS])


def test_coco_detections_equal_the_authors(reference: Path) -> None:
    """Labels, scores and order; boxes up to clipping, which Detectron2 does and the authors' code does not."""
    golden = np.load(reference / "grounding_dino" / "postprocess.npz")
    cases = json.loads((reference / "grounding_dino" / "text_cases.json").read_text())
    names = [name.strip() for name in cases["coco_input_caption"].split(" . ")]
    names[-1] = names[-1].rstrip(" .")
    (prompt,) = build_category_prompts(names, build_tokenizer())
    assert len(names) == 80 and len(prompt) == 195
    for i, (height, width) in enumerate(golden["coco_target_sizes"].tolist()):
        predictions = Predictions(*(torch.from_numpy(golden[f"coco_{name}"][i]) for name in ("logits", "boxes")))
        found = category_instances([(prompt, predictions)], (height, width), 300)
        np.testing.assert_array_equal(COCO_IDS[found.pred_classes], golden["coco_labels"][i])
        np.testing.assert_allclose(found.scores, golden["coco_scores"][i], rtol=0, atol=2e-6)
        expected = Boxes(torch.from_numpy(golden["coco_out_boxes"][i]))
        expected.clip((height, width))
        np.testing.assert_allclose(found.pred_boxes.tensor, expected.tensor, rtol=0, atol=1e-3)


def predictions(num_queries: int, num_tokens: int, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_queries, num_tokens, generator=generator)
    return Predictions(logits, torch.rand(num_queries, 4, generator=generator) * 0.5 + 0.25)


def test_several_prompts_share_the_ranking() -> None:
    prompts = build_category_prompts(["cat", "red dog", "bus"], build_tokenizer(), max_tokens=8)
    assert [p.category_indices for p in prompts] == [(0, 1), (2,)]
    found = [(p, predictions(4, len(p), seed)) for seed, p in enumerate(prompts)]
    scores = {}  # (query through all prompts, category) -> score
    for first, (prompt, p) in zip((0, 4), found):
        for category, ((start, end),) in zip(prompt.category_indices, prompt.token_spans):
            for query in range(4):
                scores[first + query, category] = p.pred_logits[query, start:end].sigmoid().mean().item()
    expected = sorted(scores, key=scores.__getitem__, reverse=True)
    for count in (5, 100):
        instances = category_instances(found, (10, 20), count)
        pairs = list(zip(instances.query_indices.tolist(), instances.pred_classes.tolist()))
        assert pairs == expected[:count]
        assert instances.scores.tolist() == pytest.approx([scores[pair] for pair in pairs])
    boxes = torch.cat([p.pred_boxes for _, p in found])[instances.query_indices]
    assert torch.equal(instances.pred_boxes.tensor, scale_boxes(boxes, (10, 20)).tensor)


def test_candidates_are_the_best_of_every_prompt() -> None:
    prompts = build_category_prompts(["cat", "red dog", "bus"], build_tokenizer(), max_tokens=8)
    found = [(p, predictions(4, len(p), seed)) for seed, p in enumerate(prompts)]
    answer = postprocess_picture(found, {"categories": ["cat", "red dog", "bus"]}, (10, 20), 3)
    assert len(answer["instances"]) == 3 and len(answer["candidates"]) == 6
    assert torch.equal(answer["instances"].scores, answer["candidates"].scores[:3])
    assert (answer["candidates"].scores.diff() <= 0).all()
    for part in found:
        alone = category_instances([part], (10, 20), 3)
        own = torch.isin(answer["candidates"].pred_classes, torch.tensor(part[0].category_indices))
        assert torch.equal(answer["candidates"][own].scores, alone.scores)
        assert torch.equal(answer["candidates"][own].pred_boxes.tensor, alone.pred_boxes.tensor)
    (prompt,) = build_category_prompts(["cat"], build_tokenizer())
    raw = [(prompt, predictions(4, len(prompt)))]
    assert list(postprocess_picture(raw, {"categories": ["cat"]}, (10, 20), 3)) == ["instances"]


def test_caption() -> None:
    prompt = build_caption_prompt("a cat on a mat", build_tokenizer())
    raw = predictions(5, len(prompt))
    instances = caption_instances(raw, (10, 20))
    best = raw.pred_logits.sigmoid().amax(1)
    order = best.argsort(descending=True)
    assert torch.equal(instances.scores, best[order]) and torch.equal(instances.token_logits, raw.pred_logits[order])
    assert torch.equal(instances.pred_boxes.tensor, scale_boxes(raw.pred_boxes[order], (10, 20)).tensor)
    inputs = {"caption": "a cat on a mat", "height": 30, "width": 40}
    assert postprocess_picture([(prompt, raw)], inputs, (10, 20), 3)["instances"].image_size == (30, 40)
    assert postprocess_picture([(prompt, raw)], {"caption": "x"}, (10, 20), 3)["instances"].image_size == (10, 20)


def test_boxes_are_scaled_and_clipped() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 1.0, 0.5]], dtype=torch.bfloat16)
    scaled = scale_boxes(boxes, (100, 200)).tensor
    assert scaled.dtype == torch.float32
    assert scaled.tolist() == [[50, 25, 150, 75], [0, 75, 100, 100]]


def test_fewer_queries_than_detections() -> None:
    (prompt,) = build_category_prompts(["cat"], build_tokenizer())
    assert len(category_instances([(prompt, predictions(2, len(prompt)))], (10, 10), 300)) == 2
    assert len(category_instances([(prompt, predictions(0, len(prompt)))], (10, 10), 300)) == 0


def test_expressions_of_different_prompts_do_not_compete() -> None:
    inputs = {"categories": ["cat", "red dog"], "referring": True, "names_per_prompt": 1}
    prompts = build_category_prompts(inputs["categories"], build_tokenizer(), names_per_prompt=1)
    assert [p.category_indices for p in prompts] == [(0,), (1,)]
    strong, weak = predictions(6, len(prompts[0]), 1), predictions(6, len(prompts[1]), 2)
    strong = Predictions(strong.pred_logits + 20, strong.pred_boxes)
    found = list(zip(prompts, (strong, weak)))
    together = postprocess_picture(found, {"categories": inputs["categories"]}, (10, 20), 3)["instances"]
    assert together.pred_classes.tolist() == [0, 0, 0]
    apart = postprocess_picture(found, inputs, (10, 20), 3)["instances"]
    assert apart.pred_classes.tolist() == [0, 0, 0, 1, 1, 1]
    best = postprocess_picture(found, {**inputs, "token_score": "max"}, (10, 20), 3)["instances"]
    expected = weak.pred_logits.amax(-1).sigmoid().sort(descending=True).values[:3]
    assert best.scores[3:].tolist() == pytest.approx(expected.tolist())
    assert not torch.equal(best.scores[3:], apart.scores[3:])


def test_each_phrase_of_a_caption_gets_its_best_queries() -> None:
    spans = [(0, 5), [(9, 14), (0, 5)]]
    inputs = {"caption": "a cat on a mat", "phrases": spans}
    prompt = build_caption_prompt(inputs["caption"], build_tokenizer(), phrases=spans)
    raw = predictions(6, len(prompt))
    found = postprocess_picture([(prompt, raw)], inputs, (10, 20), 4)["instances"]
    assert found.pred_classes.tolist() == [0] * 4 + [1] * 4
    scores = raw.pred_logits.sigmoid()
    tokens = [[1, 2], [1, 2, 4, 5]]  # [CLS] a cat on a mat . [SEP]
    for phrase, columns in enumerate(tokens):
        expected, queries = scores[:, columns].mean(1).topk(4)
        of_phrase = found[found.pred_classes == phrase]
        assert of_phrase.query_indices.tolist() == queries.tolist()
        torch.testing.assert_close(of_phrase.scores, expected)
        assert torch.equal(of_phrase.pred_boxes.tensor, scale_boxes(raw.pred_boxes[queries], (10, 20)).tensor)
