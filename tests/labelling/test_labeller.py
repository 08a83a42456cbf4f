"""A worker's part, with tiny models: the predictor's own answers, whatever a picture's neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.labelling.inputs import PictureInputs
from grounding_dino.labelling.labeller import Labeller, Task
from grounding_dino.labelling.plan import write_plan
from grounding_dino.labelling.settings import DETECTIONS_ALONE, LabelSettings
from grounding_dino.model_zoo import load_cfg
from grounding_dino.predictor import GroundingPredictor
from grounding_dino.structures import RleMasks
from grounding_dino.thresholds import CategoryThresholds

import pytest
import torch
from detectron2.config import CfgNode

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_DECODER.NUM_LAYERS", 1,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1,
    "MODEL.TEXT_ENCODER.NUM_LAYERS", 1,
    "MODEL.QUERY_SELECTION.NUM_QUERIES", 8,
    "INPUT.MIN_SIZE_TEST", 32,
    "INPUT.MAX_SIZE_TEST", 64,
]  # fmt: skip
WORDS = {"categories": ["red circle", "blue star"]}


@pytest.fixture(scope="module")
def predictor() -> GroundingPredictor:
    torch.manual_seed(0)
    return GroundingPredictor(load_cfg("shapes_tiny", TINY))


@pytest.fixture
def entries(folder: Path, tmp_path: Path) -> list[dict[str, Any]]:
    (folder / "a.jpg").write_bytes(b"no picture")
    return list(write_plan(tmp_path, PictureInputs([str(folder)])))


def labelled(predictor: GroundingPredictor, entries: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    chosen = {"words": WORDS, "box_threshold": 0.0, **settings}
    labeller = Labeller(LabelSettings("shapes_tiny", **chosen), predictor)
    return labeller(Task(tuple(entries), frozenset(entry["number"] for entry in entries)))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_are_what_the_predictor_finds(predictor, entries, batch_size: int) -> None:
    broken, *records = labelled(predictor, entries, batch_size=batch_size)
    assert broken["number"] == 0 and "not a picture" in broken["error"]
    assert [record["number"] for record in records] == [1, 2, 3, 4]
    for entry, record in zip(entries[1:], records):
        found = predictor(entry["source"]["path"], **WORDS, box_threshold=0.0)
        assert (record["height"], record["width"]) == (40, 60) and len(record["detections"]) == len(found) > 0
        for detection, score, box in zip(record["detections"], found.scores.tolist(), found.pred_boxes.tensor.tolist()):
            assert detection["score"] == pytest.approx(score, abs=1e-4)
            assert detection["box"] == pytest.approx(box, abs=0.02)
            assert detection["label"] in WORDS["categories"]


def test_a_task_that_is_begun_again_gives_the_same(predictor, entries) -> None:
    whole = labelled(predictor, entries, batch_size=3)
    labeller = Labeller(LabelSettings("shapes_tiny", words=WORDS, box_threshold=0.0, batch_size=3), predictor)
    rest = labeller(Task(tuple(entries), frozenset([3, 4])))
    assert rest == whole[3:]


def test_what_is_read_ahead_changes_nothing(predictor, entries) -> None:
    labeller = Labeller(LabelSettings("shapes_tiny", words=WORDS, box_threshold=0.0), predictor)
    tasks = [Task((entry,), frozenset([entry["number"]])) for entry in entries]
    ahead = [labeller(task, following)[0] for task, following in zip(tasks, [*tasks[1:], None])]
    assert ahead == labelled(predictor, entries)


def test_pictures_have_words_of_their_own(predictor, entries) -> None:
    entries[1]["categories"] = ["green bar"]
    entries[2]["caption"] = "a bar and a cross"
    entries[3]["categories"] = ["..."]
    records = labelled(predictor, entries, batch_size=4, text_threshold=1.0)
    assert {d["label"] for d in records[1]["detections"]} == {"green bar"}
    assert {d["label"] for d in records[2]["detections"]} <= {"a", "bar", "and", "cross"}
    assert "contains no word" in records[3]["error"]  # and the others of its batch are done
    assert {d["label"] for d in records[4]["detections"]} <= set(WORDS["categories"])


def test_a_picture_without_words_fails_where_there_are_none_for_all(predictor, entries) -> None:
    entries[1]["categories"] = ["bar"]
    records = labelled(predictor, entries, words={})
    assert "error" not in records[1] and "nothing to look for" in records[2]["error"]


def test_thresholds_by_class_and_names_that_are_not_wanted(predictor, entries) -> None:
    found = labelled(predictor, entries[1:2])[0]["detections"]
    assert {d["label"] for d in found} == set(WORDS["categories"])
    thresholds = CategoryThresholds(0.0, {"red circle": 1.0})
    kept = labelled(predictor, entries[1:2], box_threshold=thresholds)[0]["detections"]
    assert kept == [d for d in found if d["label"] == "blue star"]
    kept = labelled(predictor, entries[1:2], words={"categories": ["blue star"]}, not_wanted=("red circle",))
    assert len(kept[0]["detections"]) < len(found) and {d["label"] for d in kept[0]["detections"]} <= {"blue star"}


def test_suppression_leaves_no_doubles(predictor, entries) -> None:
    every, few = (labelled(predictor, entries[1:2], tile_size=20, nms=iou)[0]["detections"] for iou in (1.0, 0.05))
    assert 0 < len(few) < len(every) and all(detection in every for detection in few)


def test_tiles_add_what_the_whole_picture_does_not_show(predictor, entries) -> None:
    broken, *records = labelled(predictor, entries, tile_size=20, batch_size=2, nms=1.0)
    whole = labelled(predictor, entries[1:])
    assert "error" in broken
    for record, plain in zip(records, whole):
        assert len(record["detections"]) > len(plain["detections"])
        boxes = torch.tensor([d["box"] for d in record["detections"]])
        assert (boxes >= 0).all() and (boxes <= torch.tensor([60.0, 40.0, 60.0, 40.0])).all()
        scores = [d["score"] for d in record["detections"]]
        assert scores == sorted(scores, reverse=True)


def test_a_model_of_fixed_classes_gives_masks(build_tiny_mask: Callable[..., CfgNode], entries) -> None:
    torch.manual_seed(0)
    predictor = GroundingPredictor(build_tiny_mask(*DETECTIONS_ALONE, "TEST.INSTANCE_ON", True))
    for settings in ({}, {"tile_size": 30}):
        _, record, *_ = labelled(predictor, entries, words={}, **settings)
        masks = RleMasks(d["mask"] for d in record["detections"]).decode()
        assert masks.shape[1:] == (40, 60) and len(masks) > 0
    _, record, *_ = labelled(predictor, entries, words={}, masks=False)
    assert record["detections"] and "mask" not in record["detections"][0]
