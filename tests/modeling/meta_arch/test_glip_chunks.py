"""Names that take several prompts of GLIP: detections of the whole list, by index into it, equal those of its parts.

What chunks change is the text: BERT and fusion see the names of one chunk at a time, so the scores of a name depend on
which others stand beside it. By how much for GLIP-T is measured at the end, with the reference's weights.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.dense_head.detections import Candidates
from grounding_dino.modeling.meta_arch.glip import GLIP
from grounding_dino.text.category_scores import category_scores

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

NAMES = ["cat", "red circle", "traffic light", "dog", "cat", "hair drier", "red circle", "tv"]
IMAGE = (70, 90)


@pytest.fixture
def picture() -> dict[str, Any]:
    torch.manual_seed(3)
    return {"image": torch.randint(0, 256, (3, *IMAGE)).float(), "height": 140, "width": 180}


@pytest.fixture
def glip(tiny_glip: GLIP) -> GLIP:
    """With fewer detections and pairs of a level than there would be, so that limits are part of the test."""
    tiny_glip.detections = dataclasses.replace(tiny_glip.detections, detections_per_image=25, pre_nms_topk=60)
    return tiny_glip


@torch.no_grad()
def ask(model: GLIP, picture: dict[str, Any], names: list[str], at_once: int = 0) -> dict[str, Instances]:
    model.categories_per_prompt = at_once
    (answer,) = model([{**picture, "categories": names}])
    return answer


def rows(instances: Instances) -> list[tuple[float, ...]]:
    """In one order: equal scores may swap."""
    boxes = instances.pred_boxes.tensor.tolist()
    return sorted(
        (-score, label, *box)
        for box, score, label in zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist())
    )


def assert_same(one: Instances, other: Instances) -> None:
    assert len(one) == len(other)
    torch.testing.assert_close(torch.tensor(rows(one)), torch.tensor(rows(other)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_chunks_equal_their_prompts_run_alone_and_merged_before_suppression(
    glip: GLIP, picture: dict[str, Any], at_once: int
) -> None:
    """Of every chunk all candidates; then suppression, by index into the whole list, and the best, of all together."""
    together = ask(glip, picture, NAMES, at_once)["instances"]
    joined: list[Candidates] = []
    with torch.no_grad():
        glip.categories_per_prompt = at_once
        for start in range(0, len(NAMES), at_once):
            (prompt,) = glip.text_prompts_of({"categories": NAMES[start : start + at_once]})
            ((_, _, predictions),) = glip.predict(glip.preprocess_image([picture]), [[prompt]])
            scores = glip.detections._scores(predictions, prompt)
            found = glip.detections.candidates(scores, predictions, glip.anchors(predictions), IMAGE)
            joined.append(dataclasses.replace(found, classes=found.classes + start))
    parts = [torch.cat([getattr(c, field.name) for c in joined]) for field in dataclasses.fields(Candidates)]
    merged = glip.detections.suppress(Candidates(*parts))[torch.arange(25)]
    assert len(together) == 25
    expected = Instances(together.image_size)
    expected.pred_boxes = type(together.pred_boxes)(2 * merged.boxes.float())  # the answer has twice the size
    expected.pred_boxes.clip(together.image_size)
    expected.scores, expected.pred_classes = merged.scores, merged.classes
    assert_same(together, expected)


def test_candidates_are_the_best_of_every_chunk(glip: GLIP, picture: dict[str, Any]) -> None:
    answer = ask(glip, picture, NAMES, 3)
    assert len(answer["candidates"]) == 3 * 25 and "candidates" not in ask(glip, picture, NAMES)
    scores = answer["candidates"].scores.tolist()
    assert scores == sorted(scores, reverse=True)
    assert rows(answer["instances"]) == rows(answer["candidates"][torch.arange(25)])
    for start in range(0, len(NAMES), 3):
        alone = ask(glip, picture, NAMES[start : start + 3])["instances"]
        alone.pred_classes = alone.pred_classes + start
        classes = answer["candidates"].pred_classes
        assert_same(answer["candidates"][(classes >= start) & (classes < start + 3)], alone)


@pytest.mark.parametrize("at_once", [0, 3])
def test_every_detection_has_one_index_into_the_whole_list(glip: GLIP, picture: dict[str, Any], at_once: int) -> None:
    glip.detections = dataclasses.replace(glip.detections, detections_per_image=1000)
    found = ask(glip, picture, NAMES, at_once)["instances"]
    assert found.pred_classes.dtype == torch.int64 and found.pred_classes.shape == (len(found),)
    assert set(found.pred_classes.tolist()) == set(range(len(NAMES)))
    # of equal names in one prompt each has what the other has; in two, each is asked among others
    first, second = (found[found.pred_classes == index] for index in (1, 6))
    if at_once == 0:
        assert torch.equal(first.scores, second.scores) and len(first)
    else:
        assert not torch.equal(first.scores[:5], second.scores[:5])


def test_lists_of_different_lengths_in_one_batch(glip: GLIP, picture: dict[str, Any]) -> None:
    glip.categories_per_prompt = 3
    lists = [NAMES, NAMES[:2], NAMES[:5]]
    with torch.no_grad():
        answers = glip([{**picture, "categories": names} for names in lists])
    for names, answer in zip(lists, answers):
        assert_same(answer["instances"], ask(glip, picture, names, 3)["instances"])


@torch.no_grad()
@pytest.mark.parametrize("prompts_per_batch", [2, 3, 100])
def test_chunks_as_a_batch_equal_chunks_alone(glip: GLIP, picture: dict[str, Any], prompts_per_batch: int) -> None:
    """Pictures of two padded sizes, with lists of different lengths."""
    lists = [NAMES, NAMES[:2], NAMES[2:]]
    wide = {**picture, "image": picture["image"].repeat(1, 1, 2)}
    inputs = [{**one, "categories": names} for one, names in zip((picture, wide, picture), lists)]
    rows: list[int] = []
    glip.tower.register_forward_pre_hook(lambda _, args: rows.append(len(args[0][0])))
    alone = [ask(glip, one, one["categories"], 2)["instances"] for one in inputs]
    assert rows == [1] * (4 + 1 + 3)
    rows.clear()
    glip.prompts_per_batch = prompts_per_batch
    for one, answer in zip(alone, glip(inputs), strict=True):
        assert_same(one, answer["instances"])
    assert rows == {2: [2, 2, 2, 1, 1], 3: [3, 3, 1, 1], 100: [7, 1]}[prompts_per_batch]


@torch.no_grad()
def test_only_one_batch_of_prompts_is_kept(glip: GLIP, picture: dict[str, Any]) -> None:
    """31 prompts' logits of all places would take half a gigabyte."""
    kept: list[weakref.ref[Tensor]] = []
    most = 0

    def note(_module: Any, _args: Any, output: Any) -> None:
        nonlocal most
        most = max(most, sum(one() is not None for one in kept))
        kept.append(weakref.ref(output.token_logits[0]))

    glip.head.register_forward_hook(note)
    ask(glip, picture, NAMES, 1)
    assert len(kept) == len(NAMES) and most <= 2  # the first prompt's, and the last's


def coco_names() -> list[str]:
    from detectron2.data import MetadataCatalog

    return list(MetadataCatalog.get("coco_2017_val").thing_classes)


def lvis_names() -> list[str]:
    """As many names as LVIS has, of one to four words; its own stand in its annotations alone."""
    words = coco_names()
    return [words[i % 80] if i < 80 else f"{words[i % 80]} {words[i // 80]}" for i in range(1203)]


@pytest.mark.parametrize(
    ("names", "at_once", "number", "prompts"),
    [(coco_names, 0, 80, 1), (lvis_names, 40, 1203, 31)],
    ids=["COCO in one prompt", "LVIS in chunks of 40"],
)
def test_the_lists_of_published_numbers(
    glip: GLIP, picture: dict[str, Any], names: Callable[[], list[str]], at_once: int, number: int, prompts: int
) -> None:
    listed = names()
    glip.categories_per_prompt = at_once
    built = glip.text_prompts_of({"categories": listed})
    assert len(listed) == number and len(built) == prompts
    assert [i for prompt in built for i in prompt.category_indices] == list(range(number))
    assert max(map(len, built)) <= 256
    glip.detections = dataclasses.replace(glip.detections, pre_nms_topk=1000, detections_per_image=300)
    found = ask(glip, picture, listed, at_once)
    classes = found["instances"].pred_classes
    assert len(classes) == 300 and 0 <= classes.min() <= classes.max() < number
    every = found.get("candidates", found["instances"]).pred_classes
    assert len(set((every // 40).tolist())) == prompts if at_once else len(set(every.tolist())) > 5


def test_as_many_names_as_fit(glip: GLIP) -> None:
    glip.categories_per_prompt = 0
    built = glip.text_prompts_of({"categories": lvis_names()})
    assert [i for prompt in built for i in prompt.category_indices] == list(range(1203)) and len(built) > 5
    for prompt, after in zip(built, built[1:]):  # each is full: the next name has no room
        ((start, end),) = after.token_spans[0]
        assert len(prompt) <= 256 < len(prompt) + 1 + (end - start)


# By how much chunks of so many of COCO's 80 names change the scores of all places and names: in the mean, at most.
# MODEL_ZOO.md quotes these numbers.
CHANGES = {40: (0.0169, 0.125), 20: (0.0334, 0.231)}


@pytest.mark.slow
@torch.no_grad()
def test_how_much_chunks_change_scores(recipe_weights: Any, fill: ModuleType) -> None:
    """Of GLIP-T with the reference's weights, which are no trained ones: a name's score hangs on its neighbours."""
    cfg = load_cfg("glip_t_c", ["MODEL.DEVICE", "cpu"])
    model: Any = build_model(cfg).eval()
    weights = recipe_weights("glip", "manifest_mmdet_glip_atss_swin-t_c_fpn_dyhead_pretrain_obj365-goldg.json")
    model.load_state_dict(translate_checkpoint({"state_dict": weights}, "recipe").state)
    pixels = fill.fill_image(192, 256, seed=1)[..., ::-1].copy()  # BGR
    images, names = model.preprocess_image([{"image": torch.from_numpy(pixels).permute(2, 0, 1)}]), coco_names()

    def scores(at_once: int) -> Tensor:
        """(places of all levels, 80)."""
        found = model.predict(images, [model.text_encoder.prompts.of_categories(names, at_once)])
        parts = [[category_scores(level, prompt) for level in p.token_logits] for _, prompt, p in found]
        return torch.cat([torch.cat(part) for part in parts], dim=1)

    whole = scores(0)
    print(f"scores have a standard deviation of {whole.std():.4f}")
    for at_once, (mean, largest) in CHANGES.items():
        change = (scores(at_once) - whole).abs()
        print(f"chunks of {at_once}: changed by {change.mean():.4f} in the mean, {change.max():.3f} at most")
        assert change.mean().item() == pytest.approx(mean, abs=2e-4)
        assert change.max().item() == pytest.approx(largest, abs=2e-3)
