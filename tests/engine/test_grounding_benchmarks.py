"""RefCOCO, gRefCOCO, Flickr30k Entities and D3, small and in their published layout: evaluated and trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.data.build import build_test_loader, load_records
from grounding_dino.data.datasets.described_json import GROUPS
from grounding_dino.engine.trainer import Trainer
from grounding_dino.evaluation.build import metric_names

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[2]
ConfigBuilder = Callable[..., CfgNode]
HEIGHT, WIDTH = 48, 64
BOXES = {"red square": [2, 3, 20, 20], "blue square": [34, 20, 24, 24]}
COLOURS = {"red square": (220, 30, 30), "blue square": (30, 30, 220)}
NUM_PICTURES = 3

# Of every evaluation the data set, its task, the metrics that it at least gives, and a file beside metrics.json.
EVALUATIONS = [
    ("refcoco_val", "refexp", {"P@1", "P@5", "P@10", "mIoU"}, "refexp_overlaps.json"),
    ("refcocoplus_testA", "refexp", {"P@1", "P@5", "P@10"}, "refexp_overlaps.json"),
    ("refcocog_test", "refexp", {"P@1", "P@5", "P@10"}, "refexp_overlaps.json"),
    ("grefcoco_testB", "grefexp", {"P@(F1=1)", "N_acc", "T_acc"}, "grefexp.json"),
    ("flickr30k_test", "flickr30k", {"R@1", "R@10", "merged_R@1", "merged_R@10"}, "phrase_ranks.json"),
    ("d3_full", "d3", {"AP", "AP50", "AP_presence", "AP_absence"}, "coco_instances_results.json"),
    ("d3_presence", "d3", {"AP", "AP50", "AP_presence"}, "coco_instances_results.json"),
    ("d3_absence", "d3", {"AP", "AP50", "AP_absence"}, "coco_instances_results.json"),
    ("d3_full_inter", "d3", {"AP", "AP50"}, "coco_instances_results.json"),
]
NAMES = [name for name, *_ in EVALUATIONS]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _mdetr(entries: list[tuple[str, dict[str, list[list[int]]]]], **more: Any) -> dict[str, Any]:
    """Sentences about the pictures in turn, each with the character spans that belong to the things it names."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (caption, named) in enumerate(entries):
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": number, "file_name": f"{number % NUM_PICTURES}.png", **size, "caption": caption})
        images[-1].update(tokens_positive_eval=[[span] for spans in named.values() for span in spans], **more)
        for name, spans in named.items():
            annotation = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": BOXES[name]}
            annotations.append({**annotation, "area": 400, "iscrowd": 0, "tokens_positive": spans})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def _expressions(root: Path) -> None:
    one = [("the red square", {"red square": [[8, 14]]}), ("left square", {"red square": [[5, 11]]})]
    one += [("right square", {"blue square": [[6, 12]]}), ("blue one", {"blue square": [[5, 8]]})]
    many = [*one, ("both squares", {"red square": [[5, 12]], "blue square": [[5, 12]]}), ("a green dog", {})]
    for family, splits, entries in (
        ("refcoco", ("train", "val"), one),
        ("refcoco+", ("testA",), one),
        ("refcocog", ("test",), one),
        ("grefcoco", ("train", "testB"), many),
    ):
        for split in splits:
            content = _mdetr(entries, dataset_name=family)
            for image in content["images"]:
                del image["tokens_positive_eval"]
            _write(root / "coco/mdetr_annotations" / f"finetune_{family}_{split}.json", content)


def _phrases(root: Path) -> None:
    entries = [
        ("A red square beside a blue square .", {"red square": [[0, 12]], "blue square": [[20, 33]]}),
        ("Two things , one blue .", {"blue square": [[13, 21]]}),
    ]
    for split in ("train", "test"):
        _write(
            root / f"flickr30k_entities/final_flickr_separateGT_{split}.json", _mdetr(entries, dataset_name="flickr")
        )


def _descriptions(root: Path) -> None:
    texts = {1: "a red square", 2: "a square that is not red", 3: "anything blue"}
    things = {1: "red square", 2: "blue square", 3: "blue square"}
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(NUM_PICTURES)]
    for subset, numbers in {"full": (1, 2, 3), "pres": (1, 3), "abs": (2,)}.items():
        annotations: list[dict[str, Any]] = []
        for image in images:
            for number in numbers:
                annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": number}
                annotations.append({**annotation, "bbox": BOXES[things[number]], "area": 400, "iscrowd": 0})
        categories = [{"id": number, "name": texts[number]} for number in numbers]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _write(root / f"d3/d3_json/d3_{subset}_annotations.json", content)
    descriptions = [{"id": number, "text": text, "absence": number == 2} for number, text in texts.items()]
    groups = [{"id": 0, "name": "squares", "description_ids": [1, 2, 3], "image_ids": list(range(NUM_PICTURES))}]
    _write(root / GROUPS, {"descriptions": descriptions, "groups": groups})


@pytest.fixture(autouse=True)
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data sets, with three pictures of a red and a blue square in each."""
    root = tmp_path / "sets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for name, (x, y, width, height) in BOXES.items():
            pixels[y : y + height, x : x + width] = COLOURS[name]
        for folder in ("coco/train2014", "flickr30k_entities/flickr30k_images", "d3/d3_images"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    for make in (_expressions, _phrases, _descriptions):
        make(root)
    return root


class Oracle(nn.Module):
    """Answers with the annotations of the data set, or those of the classes one further."""

    def __init__(self, name: str, shift: int = 0) -> None:
        super().__init__()
        self.records = {record["image_id"]: record for record in load_records([name])}
        self.shift = shift

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._answer(self.records[inputs["image_id"]])} for inputs in batch]

    def _answer(self, record: dict[str, Any]) -> Instances:
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
        number = len(record["phrases"] if "phrases" in record else record["categories"])
        classes = [(a["category_id"] + self.shift) % number for a in record["annotations"]]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.full((len(boxes),), 0.9)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return instances


@pytest.mark.parametrize(("name", "task", "metrics", "file"), EVALUATIONS)
def test_an_evaluation_gives_numbers_and_files(
    train_cfg: ConfigBuilder, tiny_model: nn.Module, name: str, task: str, metrics: set[str], file: str
) -> None:
    cfg = train_cfg("DATASETS.TEST", (name,))
    results = Trainer.test(cfg, tiny_model)
    assert metrics <= set(results[task])
    given = {f"{task}/{metric}" for metric in results[task] if "-" not in metric}
    assert given <= set(metric_names(cfg, name) or ()), "what a best checkpoint may go by"
    assert all(0 <= value <= 100 for value in results[task].values())
    folder = Path(cfg.OUTPUT_DIR) / "inference" / name
    assert json.loads((folder / file).read_text())
    written = json.loads((folder / "metrics.json").read_text())
    assert written["metrics"][task] == pytest.approx(results[task])
    assert "prompt" in written["protocol"] and "score" in written["protocol"]


@pytest.mark.parametrize(("name", "task", "metrics", "file"), EVALUATIONS)
def test_a_dense_head_gives_numbers_and_files(
    glip_train_cfg: ConfigBuilder, tiny_glip: nn.Module, name: str, task: str, metrics: set[str], file: str
) -> None:
    cfg = glip_train_cfg("DATASETS.TEST", (name,))
    results = Trainer.test(cfg, tiny_glip)
    assert metrics <= set(results[task]) and all(0 <= value <= 100 for value in results[task].values())
    folder = Path(cfg.OUTPUT_DIR) / "inference" / name
    assert json.loads((folder / file).read_text())
    protocol = json.loads((folder / "metrics.json").read_text())["protocol"]
    # expressions and phrases are answered by their best boxes, whatever these score; gRefCOCO has its own threshold
    kept = "score of at least 0." if task == "grefexp" else "score any, of the best 1000 of a level"
    assert kept in protocol["detections"] and "times the centerness" in protocol["centerness"]
    assert not protocol["prompt"].endswith(".") or name == "flickr30k_test"  # GLIP's prompts have no closing period


@pytest.mark.parametrize("name", ["refcoco_train_grouped", "grefcoco_train", "flickr30k_train"])
def test_a_dense_head_learns_from_grounding_data(glip_train_cfg: ConfigBuilder, name: str) -> None:
    trainer = Trainer(glip_train_cfg("DATASETS.TRAIN", (name,), "SOLVER.MAX_ITER", 2))
    trainer.resume_or_load(False)
    trainer.train()
    assert np.isfinite(trainer.storage.history("total_loss").latest())


@pytest.mark.parametrize(("name", "task", "metric"), [(name, task, min(m)) for name, task, m, _ in EVALUATIONS])
def test_the_truth_gives_100_and_that_of_another_text_does_not(
    train_cfg: ConfigBuilder, name: str, task: str, metric: str
) -> None:
    cfg = train_cfg("DATASETS.TEST", (name,))
    assert Trainer.test(cfg, Oracle(name))[task][metric] == pytest.approx(100)
    if name != "d3_absence":  # of which a picture has one description that is scored
        assert Trainer.test(cfg, Oracle(name, shift=1))[task][metric] < 80


@pytest.mark.parametrize(("at_once", "prompts"), [(0, 1), (1, 3), (2, 2)])
def test_descriptions_are_asked_for_together_or_one_by_one(
    train_cfg: ConfigBuilder, tiny_model: nn.Module, at_once: int, prompts: int
) -> None:
    cfg = train_cfg("DATASETS.TEST", ("d3_full",), "TEST.DESCRIPTIONS_PER_PROMPT", at_once)
    ((sample,), *_) = build_test_loader(cfg, "d3_full")
    assert [len(p.token_spans) for p in tiny_model.prompts_of(sample)] == [min(at_once or 3, 3)] * (prompts - 1) + [
        3 - min(at_once or 3, 3) * (prompts - 1)
    ]
    Trainer.test(cfg, tiny_model)
    written = json.loads((Path(cfg.OUTPUT_DIR) / "inference/d3_full/metrics.json").read_text())
    assert f"TEST.DESCRIPTIONS_PER_PROMPT {at_once}" in written["protocol"]["prompt"]


def test_the_score_from_which_a_box_is_an_answer_is_configured(train_cfg: ConfigBuilder) -> None:
    oracle = Oracle("grefcoco_testB")  # has scores of 0.9
    of = {
        threshold: Trainer.test(
            train_cfg("DATASETS.TEST", ("grefcoco_testB",), "TEST.EXPRESSION_THRESHOLD", threshold), oracle
        )["grefexp"]["T_acc"]
        for threshold in (0.7, 0.95)
    }
    assert of == {0.7: 100, 0.95: 0}


class Hasty(Oracle):
    """Gives a wrong box of each thing before the right one."""

    def _answer(self, record: dict[str, Any]) -> Instances:
        right = super()._answer(record)
        wrong = Instances(right.image_size, **right.get_fields())
        wrong.pred_boxes = Boxes(right.pred_boxes.tensor * 0.1)
        wrong.scores = right.scores + 0.05
        return Instances.cat([wrong, right])


def test_only_so_many_detections_of_a_description_count(train_cfg: ConfigBuilder) -> None:
    model = Hasty("d3_full")
    for number, expected in ((1, 0), (2, 50)):  # in the end one of two is right, in all pictures together
        cfg = train_cfg("DATASETS.TEST", ("d3_full",), "TEST.MAX_DETECTIONS", number)
        assert Trainer.test(cfg, model)["d3"]["AP50"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["refcoco_train", "refcoco_train_grouped", "grefcoco_train", "flickr30k_train"])
def test_training_takes_steps(train_cfg: ConfigBuilder, name: str) -> None:
    cfg = train_cfg("DATASETS.TRAIN", (name,), "SOLVER.MAX_ITER", 3, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    trainer = Trainer(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(False)
    trainer.train()
    losses = trainer.storage.histories()["total_loss"].values()
    assert len(losses) == 3 and all(np.isfinite(value) for value, _ in losses)
    assert any(not torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(train_cfg: ConfigBuilder, tiny_model: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": tiny_model.state_dict()}, tmp_path / "tiny.pth")
    cfg = train_cfg("DATASETS.TEST", tuple(NAMES), "MODEL.WEIGHTS", str(tmp_path / "tiny.pth"))
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = []
    for processes in (1, 2):
        output = tmp_path / f"on_{processes}"
        arguments = ["--config-file", str(tmp_path / "tiny.yaml"), "--eval-only", "--num-gpus", str(processes)]
        command = [sys.executable, str(ROOT / "train_net.py"), *arguments, "OUTPUT_DIR", str(output)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(
            {
                name: [json.loads((output / "inference" / name / part).read_text()) for part in ("metrics.json", file)]
                for name, _, _, file in EVALUATIONS
            }
        )
    one, two = found
    for name in NAMES:
        (alone, answers), (shared, same_answers) = one[name], two[name]
        assert "on 2 processes" in shared["protocol"]["pictures"]
        assert alone["metrics"] == shared["metrics"]
        assert answers and answers == same_answers
    assert any(
        value for alone, _ in one.values() for metrics in alone["metrics"].values() for value in metrics.values()
    )
