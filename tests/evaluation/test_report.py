"""The tables that evaluations end with, and the protocol above them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets import dataset_groups
from grounding_dino.evaluation.build import build_evaluator, evaluator_kinds
from grounding_dino.evaluation.protocol import common_protocol, format_protocol, prompt_protocol
from grounding_dino.evaluation.report import ReportedEvaluator, Seen, mean_rows, report_results, results_table

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

# -------------------------------------------------------------------------------------------------- tables


def test_the_table_of_several_data_sets_and_kinds_of_metrics() -> None:
    results = {
        "shapes_val": {"bbox": {"AP": 61.234, "AP50": 80.0, "AP-red circle": 3.0}},
        "shapes_val_refexp": {"refexp": {"P@1": 70.5, "mIoU": float("nan")}},
    }
    assert results_table(results, list(results)).splitlines() == [
        "  data set                     AP   AP50    P@1  mIoU",
        "  shapes_val bbox           61.23  80.00",
        "  shapes_val_refexp refexp                70.50   nan",
    ]
    assert results_table({"bbox": {"AP": 5.0}}, ["one"]).splitlines()[1] == "  one bbox  5.00"


def test_several_data_sets_end_with_means_of_what_all_of_them_give() -> None:
    results = {
        "a": {"bbox": {"AP": 10.0, "AP50": 30.0, "APs": 1.0}, "segm": {"AP": 7.0}},
        "b": {"bbox": {"AP": 20.0, "AP50": 50.0, "APs": float("nan")}},
        "c": {"bbox": {"AP": 60.0, "AP50": 70.0, "APs": 5.0}},
    }
    assert results_table(results, list(results)).splitlines() == [
        "  data set                 AP   AP50   APs",
        "  a bbox                10.00  30.00  1.00",
        "  a segm                 7.00",
        "  b bbox                20.00  50.00   nan",
        "  c bbox                60.00  70.00  5.00",
        "  mean of all (3) bbox  30.00  50.00",
        "  (a mean has the metrics that all of its data sets give)",
    ]


def test_known_groups_that_are_there_in_full_have_a_mean_of_their_own() -> None:
    members = dataset_groups()["odinw13"]
    assert len(members) == 13
    rows = [(name, "bbox", {"AP": float(place)}) for place, name in enumerate(members)]
    assert mean_rows(rows) == [("mean of odinw13 (13)", "bbox", {"AP": 6.0})]
    more = [*rows, ("mine", "bbox", {"AP": 34.0})]
    assert mean_rows(more) == [
        ("mean of odinw13 (13)", "bbox", {"AP": 6.0}),
        ("mean of all (14)", "bbox", {"AP": 8.0}),
    ]
    assert [label for label, _, _ in mean_rows(more[1:])] == ["mean of all (13)"]


def test_the_table_is_also_written_as_json(tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_cfg.OUTPUT_DIR, tiny_cfg.DATASETS.TEST = str(tmp_path), ("a", "b")
    results = {"a": {"bbox": {"AP": 10.0, "APs": float("nan"), "AP-cat": 1.0}}, "b": {"bbox": {"AP": 20.0}}}
    with caplog.at_level(logging.INFO):
        report_results(tiny_cfg, results)
    assert results_table(results, ["a", "b"]) in caplog.text
    assert json.loads((tmp_path / "inference" / "summary.json").read_text()) == {
        "data sets": {"a": {"bbox": {"AP": 10.0, "APs": None}}, "b": {"bbox": {"AP": 20.0}}},
        "means": {"mean of all (2)": {"bbox": {"AP": 15.0}}},
    }


# ------------------------------------------------------------------------------------------------ protocol


def test_the_protocol_follows_the_configuration(tiny_cfg: CfgNode) -> None:
    tiny_cfg.merge_from_list(
        [
            *("MODEL.WEIGHTS", "some.pth", "INPUT.MIN_SIZE_TEST", 640, "INPUT.MAX_SIZE_TEST", 1000),
            *("TEST.DETECTIONS_PER_IMAGE", 77, "TEST.PRECISION", "bfloat16"),
        ]
    )
    assert common_protocol(tiny_cfg, 12) == {
        "weights": "some.pth",
        "pictures": "12, on 1 process",
        "input size": "shorter side 640, longer at most 1000 pixels",
        "detections": "the 77 best of a picture (TEST.DETECTIONS_PER_IMAGE), of any score",
        "precision": "bfloat16",
    }
    tiny_cfg.INPUT.MIN_SIZE_TEST = 0
    tiny_cfg.MODEL.LORA.WEIGHTS = "adapter"
    assert common_protocol(tiny_cfg, 1)["input size"] == "as the pictures are"
    assert common_protocol(tiny_cfg, 1)["weights"] == "some.pth with the adapter adapter"


def test_the_prompt_is_said_as_it_is_written_with_its_numbers(tiny_cfg: CfgNode) -> None:
    assert prompt_protocol(tiny_cfg, ["Cat", "red  dog"]) == {
        "prompt": "cat . red dog .",
        "names": "2 names, 7 tokens, 1 prompt of at most 256 tokens",
    }
    assert prompt_protocol(tiny_cfg, "A cat")["prompt"] == "a cat."
    tiny_cfg.merge_from_list(["TEST.CATEGORIES_PER_PROMPT", 2, "TEST.DETECTIONS_PER_IMAGE", 50])
    split = prompt_protocol(tiny_cfg, ["cat", "dog", "bus"])
    assert split["prompt"] == "cat . dog . | bus ."
    assert split["names"] == "3 names, 10 tokens, 2 prompts of at most 2 names and 256 tokens"
    assert "gives its 50 best" in split["merging"] and split["text features"] == "computed once"


def test_the_prompt_of_glip_is_said_as_glip_reads_it(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.TEXT_ENCODER.SUB_SENTENCE_ON = False
    assert prompt_protocol(tiny_cfg, ["Cat", "red  dog"]) == {
        "prompt": "cat. red dog",
        "names": "2 names, 6 tokens, 1 prompt of at most 256 tokens",
    }
    assert prompt_protocol(tiny_cfg, "A cat") == {"prompt": "a cat", "names": "a caption of 4 tokens"}
    tiny_cfg.TEST.CATEGORIES_PER_PROMPT = 2
    split = prompt_protocol(tiny_cfg, ["cat", "dog", "bus"])
    assert split["prompt"] == "cat. dog | bus"
    assert split["names"] == "3 names, 8 tokens, 2 prompts of at most 2 names and 256 tokens"


def test_a_cache_too_small_for_all_prompts_is_warned_of(tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    tiny_cfg.merge_from_list(["TEST.CATEGORIES_PER_PROMPT", 1, "MODEL.TEXT_ENCODER.CACHE_SIZE", 3])
    assert prompt_protocol(tiny_cfg, ["cat", "dog"])["text features"] == "computed once" and not caplog.text
    assert prompt_protocol(tiny_cfg, ["cat", "dog", "bus"])["text features"] == "computed for every picture anew"
    assert "CACHE_SIZE 3 does not hold the 3 prompts" in caplog.text and "set it to 4 or more" in caplog.text


def test_long_values_are_shortened_in_the_log() -> None:
    lines = format_protocol({"prompt": "cat . " * 200, "a": "b"}).splitlines()
    assert lines[0].endswith("(1200 characters)") and len(lines[0]) < 400 and lines[1] == "  a       b"


class _Counts(DatasetEvaluator):
    """Counts pictures, under a task of its own."""

    def __init__(self, task: str, protocol: dict[str, str] | None = None) -> None:
        self.task, self.seen = task, 0
        if protocol is not None:
            self.protocol = lambda: protocol

    def reset(self) -> None:
        self.seen = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.seen += len(inputs)

    def evaluate(self) -> Any:
        return {self.task: {"count": self.seen, "rate": float("nan")}}


def test_the_protocol_stands_above_the_numbers_and_beside_them(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {
        "x": _Counts("one", {"limit": "10"}),
        "y": _Counts("two", {"limit": "20", "prompt": ""}),
        "z": _Counts("three"),
    }
    evaluator = ReportedEvaluator(tiny_cfg, "mine", parts, str(tmp_path))
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # the second round counts anew
            evaluator.reset()
            evaluator.process([{"categories": ["cat", "dog"]}, {"categories": ["cat", "dog"]}], [{}, {}])
            evaluator.process([{"categories": ["cat", "dog"]}], [{}])
            results = evaluator.evaluate()
    assert list(results) == ["one", "two", "three"] and results["two"]["count"] == 3
    assert "protocol of mine:\n" in caplog.text and "cat . dog ." in caplog.text
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["data set"] == "mine" and written["metrics"]["one"] == {"count": 3, "rate": None}
    assert written["protocol"]["pictures"] == "3, on 1 process" and written["protocol"]["prompt"] == "cat . dog ."
    assert written["protocol"]["limit"] == "10" and written["protocol"]["limit (y)"] == "20"


@pytest.mark.parametrize(
    "inputs,prompt,limited",
    [
        ([{"categories": ["cat"]}, {"categories": ["dog"]}], "each picture's own", "picture"),
        ([{"categories": ["the cat"], "referring": True}], "each picture's own", "prompt"),
        ([{"caption": "cats and dogs"}, {"caption": "cats and dogs"}], "cats and dogs.", "picture"),
        ([{"caption": "a cat", "phrases": [(2, 5)]}] * 2, "a cat.", "phrase"),
        ([{"image_id": 1}], None, "picture"),
    ],
)
def test_the_prompt_of_the_protocol_is_what_pictures_came_with(
    tiny_cfg: CfgNode, tmp_path: Path, inputs: list[dict[str, Any]], prompt: str | None, limited: str
) -> None:
    evaluator = ReportedEvaluator(tiny_cfg, "mine", {"x": _Counts("one")}, str(tmp_path))
    for record in inputs:
        evaluator.process([record], [{}])
    evaluator.evaluate()
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert protocol.get("prompt") == prompt
    assert protocol["detections"].startswith(f"the 300 best of a {limited} (TEST.DETECTIONS_PER_IMAGE)")


def test_the_prompt_of_the_protocol_is_that_of_all_processes() -> None:
    cat, dog = Seen.of({"caption": "a cat"}), Seen.of({"caption": "a dog"})
    assert Seen().joined(cat, Seen(), cat) == Seen(2, "a cat", True, "picture")
    assert Seen().joined(Seen(), cat, dog) == Seen(2, "a cat", False, "picture")


# ------------------------------------------------------------------------------------------------- building


def test_keys_of_the_configuration_reach_the_evaluators(
    tiny_cfg: CfgNode, generated: Any, register: Callable[..., str], tmp_path: Path
) -> None:
    content = generated.content()
    tiny_cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "TEST.MAX_DETECTIONS", 1])
    for item in content["annotations"]:
        item.update(iscrowd=0, ignore=0)
    name = register(content, "coco")
    few = _evaluate(build_evaluator(tiny_cfg, name), generated.perfect(content))["bbox"]["AP"]
    folder = tmp_path / "inference" / name
    assert {path.name for path in folder.iterdir()} >= {"metrics.json", "coco_instances_results.json"}
    assert not list(folder.glob("*.png"))
    assert "the 1 best detections" in json.loads((folder / "metrics.json").read_text())["protocol"]["AP"]
    tiny_cfg.merge_from_list(["TEST.MAX_DETECTIONS", 100, "TEST.PLOTS_ON", True])
    assert few < _evaluate(build_evaluator(tiny_cfg, name), generated.perfect(content))["bbox"]["AP"]
    assert {path.name for path in folder.glob("*.png")} == {
        "bbox_precision_recall.png",
        "bbox_categories.png",
        "confusion.png",
    }


def _evaluate(evaluator: DatasetEvaluator, outputs: dict[int, Any]) -> Any:
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    "wanted,message", [(["coco", "coco"], "more than once"), ("magic", "known are"), ([], "known are")]
)
def test_evaluators_that_cannot_be(wanted: Any, message: str) -> None:
    name = "test_report_wrong_evaluator"
    MetadataCatalog.get(name).evaluator_type = wanted
    try:
        with pytest.raises(ValueError, match=f"'{name}' asks for evaluator .*{message}"):
            evaluator_kinds(name)
    finally:
        MetadataCatalog.remove(name)
