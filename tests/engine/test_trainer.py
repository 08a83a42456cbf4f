"""The trainer around its steps: weights to start from, data sets, checkpoints, metrics and evaluations."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.engine.trainer import Trainer, check_test_sets
from grounding_dino.evaluation.build import EVALUATORS, metric_names

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator

ConfigBuilder = Callable[..., CfgNode]
EVALUATE = ("DATASETS.TEST", ("squares",))


def train(cfg: CfgNode, resume: bool = False, *hooks: HookBase) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.register_hooks(hooks)
    trainer.train()
    return trainer


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ---------------------------------------------------------------------------------------- what a run leaves behind


def test_checkpoints_kept_metrics_and_tensorboard(train_cfg: ConfigBuilder) -> None:
    cfg = train_cfg("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_KEPT", 2)
    train(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    assert sorted(file.name for file in folder.glob("*.pth")) == [
        "model_0000002.pth",
        "model_0000003.pth",
        "model_final.pth",
    ]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert list(folder.glob("events.out.tfevents.*"))
    last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 3
    names = {"total_loss", "loss_class", "loss_giou_denoising", "lr", "grad_norm", "data_time"}
    assert names | {"images_per_second", "data_share", "peak_memory_mb"} <= set(last)
    assert 0 <= last["data_share"] <= 1 and last["images_per_second"] > 0 and last["peak_memory_mb"] > 50


def test_the_speed_is_logged(train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train(train_cfg("SOLVER.MAX_ITER", 21))
    lines = [message for message in caplog.messages if "images/s" in message]
    assert [line.split(":")[0] for line in lines] == ["20 of 21 iterations", "21 of 21 iterations"]
    assert "peak memory (RSS)" in lines[0] and lines[1].endswith("ETA 0:00:00")
    assert "training on 8 pictures; an epoch of 8 takes 4.0 iterations" in caplog.text


# ----------------------------------------------------------------------------------------------- weights to start from


def test_training_starts_from_random_weights_that_the_seed_decides(train_cfg: ConfigBuilder) -> None:
    first, second, other = (Trainer(train_cfg("SEED", seed)).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["pixel_decoder.level_embed"], other["pixel_decoder.level_embed"])


def test_backbone_and_text_encoder_weights_are_taken_at_a_start_from_scratch(
    train_cfg: ConfigBuilder, tmp_path: Path
) -> None:
    source = Trainer(train_cfg("SEED", 9, output="source")).model
    torch.save(source.backbone.state_dict(), tmp_path / "backbone.pth")
    torch.save(source.text_encoder.bert.state_dict(), tmp_path / "bert.pth")
    parts = ("MODEL.BACKBONE.WEIGHTS", str(tmp_path / "backbone.pth"))
    parts = (*parts, "MODEL.TEXT_ENCODER.WEIGHTS", str(tmp_path / "bert.pth"))
    trainer = Trainer(train_cfg(*parts))
    trainer.resume_or_load(False)
    theirs = source.state_dict()
    differ = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, theirs[name])}
    assert not any(name.startswith(("backbone.", "text_encoder.bert.")) for name in differ)
    assert {"text_encoder.projection.weight", "pixel_decoder.level_embed"} <= differ


def test_whole_model_weights_win_over_backbone_weights(train_cfg: ConfigBuilder, tmp_path: Path) -> None:
    whole = train(train_cfg("SOLVER.MAX_ITER", 1, output="whole"))
    weights = ("MODEL.WEIGHTS", f"{whole.cfg.OUTPUT_DIR}/model_final.pth")
    missing = ("MODEL.BACKBONE.WEIGHTS", str(tmp_path / "missing.pth"))
    trainer = Trainer(train_cfg(*weights, *missing))
    trainer.resume_or_load(False)  # complete weights leave no gap for the backbone's
    assert all(torch.equal(tensor, trainer.model.state_dict()[n]) for n, tensor in whole.model.state_dict().items())
    for gap in (("MODEL.WEIGHTS_IGNORE", [r"^backbone\."]), ("MODEL.WARM_START_ON", True)):
        with pytest.raises(CheckpointError, match="missing.pth"):
            Trainer(train_cfg(*weights, *missing, *gap)).resume_or_load(False)
    resumed = Trainer(train_cfg(*missing, output="whole"))
    resumed.resume_or_load(True)
    assert resumed.start_iter == 1


def test_weights_with_gaps_take_the_backbone_from_its_own_file(train_cfg: ConfigBuilder, tmp_path: Path) -> None:
    whole = train(train_cfg("SOLVER.MAX_ITER", 1, output="whole"))
    backbone = Trainer(train_cfg("SEED", 9, output="source")).model.backbone.state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    opts = ("MODEL.WEIGHTS", f"{whole.cfg.OUTPUT_DIR}/model_final.pth", "MODEL.WEIGHTS_IGNORE", [r"^backbone\."])
    trainer = Trainer(train_cfg(*opts, "MODEL.BACKBONE.WEIGHTS", str(tmp_path / "backbone.pth")))
    trainer.resume_or_load(False)
    expected = {**whole.model.state_dict(), **{f"backbone.{name}": tensor for name, tensor in backbone.items()}}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("schedule", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_a_training_of_no_step_is_refused(train_cfg: ConfigBuilder, schedule: str) -> None:
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER is 0; give 1 or more"):
        Trainer(train_cfg("SOLVER.MAX_ITER", 0, "SOLVER.LR_SCHEDULER_NAME", schedule))


# --------------------------------------------------------------------------------------------------------- data sets


def test_class_indices_follow_weird_category_ids(train_cfg: ConfigBuilder) -> None:
    trainer = Trainer(train_cfg())
    assert MetadataCatalog.get("squares").thing_classes == ["green square", "blue square", "red square"]
    red = torch.tensor([220, 30, 30])
    for inputs in next(iter(trainer.data_loader)):
        instances = inputs["instances"]
        for box, label in zip(instances.gt_boxes.tensor, instances.gt_classes):
            x, y = ((box[:2] + box[2:]) / 2).long()
            is_red = (inputs["image"][:, y, x].long() - red).abs().max() < 40
            assert is_red == (inputs["categories"][label] == "red square")


@pytest.mark.parametrize("crowds", [False, True])
def test_a_data_set_without_an_object_is_refused_at_the_start(
    train_cfg: ConfigBuilder, coco_folder: Path, crowds: bool
) -> None:
    file = coco_folder / "boxes.json"
    annotations = json.loads(file.read_text())["annotations"]
    rewrite(file, annotations=[{**a, "iscrowd": 1} for a in annotations] if crowds else [])
    with pytest.raises(ValueError, match="squares.* has an object|no picture of squares"):
        Trainer(train_cfg())


def test_pictures_without_an_object_are_trained_on_beside_others(train_cfg: ConfigBuilder, coco_folder: Path) -> None:
    file = coco_folder / "boxes.json"
    annotations = json.loads(file.read_text())["annotations"]
    rewrite(file, annotations=[{**annotations[0], "iscrowd": 1}, annotations[1]])
    trainer = train(train_cfg("SOLVER.MAX_ITER", 8))
    counts = [len(inputs["instances"]) for _, batch in zip(range(8), trainer.data_loader) for inputs in batch]
    assert 0 in counts and 1 in counts


class Delete(HookBase):
    def __init__(self, file: Path) -> None:
        self.file = file

    def before_step(self) -> None:
        if self.trainer.iter == 1:
            self.file.unlink()


def test_a_picture_that_vanishes_during_training_is_replaced_and_named(
    train_cfg: ConfigBuilder, coco_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = train(train_cfg("SOLVER.MAX_ITER", 12), False, Delete(coco_folder / "4.png"))
    assert trainer.iter == 12
    named = [message for message in caplog.messages if message.startswith("training goes on without")]
    assert named == [f"training goes on without {coco_folder / '4.png'}"]


def test_a_test_set_that_is_missing_is_refused_at_the_start(train_cfg: ConfigBuilder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'circles' of DATASETS.TEST cannot be evaluated on: there is no data set"):
        Trainer(train_cfg("DATASETS.TEST", ("circles",)))
    extra = [f"gone={tmp_path / 'gone.json'}:{tmp_path}"]
    cfg = train_cfg("DATASETS.TEST", ("gone",))
    cfg.DATASETS.EXTRA = [*cfg.DATASETS.EXTRA, *extra]
    with pytest.raises(ValueError, match=r"'gone' of DATASETS.TEST .*gone.json.*DATASETS.TEST \"\(\)\""):
        Trainer(cfg)


# ------------------------------------------------------------------------------------------------------- evaluations


class Scores(DatasetEvaluator):
    """Gives the next of a list of scores at each evaluation, whatever the model says."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"bbox": {"AP": self.scores.pop(0)}}


def with_scores(monkeypatch: pytest.MonkeyPatch, *scores: float) -> list[float]:
    left = list(scores)
    monkeypatch.setitem(EVALUATORS, "coco", lambda cfg, name, folder: Scores(left))
    return left


def test_evaluations_during_and_after_training_are_each_made_once(
    train_cfg: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = with_scores(monkeypatch, 1.0, 2.0, 3.0)
    cfg = train_cfg(*EVALUATE, "TEST.EVAL_PERIOD", 2)
    trainer = train(cfg)
    assert left == [3.0]
    assert [value for value, _ in trainer.storage.history("bbox/AP").values()] == [1.0, 2.0]
    lines = [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]
    assert [line["bbox/AP"] for line in lines if "bbox/AP" in line][-1] == 2.0
    assert trainer.model.training


def best_of(cfg: CfgNode) -> dict[str, Any]:
    return torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)


def test_the_best_checkpoint_is_kept_and_outlives_an_interruption(
    train_cfg: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scores(monkeypatch, 1.0, 5.0, 3.0, 4.0, 2.0)
    opts = (*EVALUATE, "TEST.EVAL_PERIOD", 1, "SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP", "SOLVER.CHECKPOINT_PERIOD", 1)
    cfg = train_cfg(*opts, "SOLVER.MAX_ITER", 3)
    train(cfg)
    best = best_of(cfg)
    assert (best["best_value"], best["best_metric"], best["iteration"]) == (5.0, "bbox/AP", 1)
    second = torch.load(f"{cfg.OUTPUT_DIR}/model_0000001.pth", weights_only=True)["model"]
    assert all(torch.equal(tensor, best["model"][name]) for name, tensor in second.items())
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_final.pth"
    resumed = train(train_cfg(*opts, "SOLVER.MAX_ITER", 5), True)
    assert resumed.start_iter == 3
    assert best_of(cfg)["best_value"] == 5.0, "4 and 2 after resuming are worse than 5 before"
    with_scores(monkeypatch, 1.5)
    train(train_cfg(*opts, "SOLVER.MAX_ITER", 1))
    assert best_of(cfg)["best_value"] == 1.5, "a new run has no best yet"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.EVAL_PERIOD", 0), "needs evaluations during training: set TEST.EVAL_PERIOD"),
        (("DATASETS.TEST", ("squares", "more")), "has to begin with one of them, as in 'squares/bbox/AP'"),
        (("TEST.DETECTIONS_PER_IMAGE", 0), "TEST.DETECTIONS_PER_IMAGE is 0; give 1 or more"),
        (("TEST.MAX_DETECTIONS", 0), "TEST.MAX_DETECTIONS is 0; give 1 or more"),
        (("TEST.DESCRIPTIONS_PER_PROMPT", -1), "TEST.DESCRIPTIONS_PER_PROMPT is -1; give 0 or more"),
        (("TEST.PROMPTS_PER_BATCH", -1), "TEST.PROMPTS_PER_BATCH is -1; give 0 or more"),
        (("SOLVER.CHECKPOINT_PERIOD", 0), "SOLVER.CHECKPOINT_PERIOD is 0; give a number of iterations"),
        (("TEST.PRECISION", "int8"), "unknown TEST.PRECISION 'int8'; choose from"),
        (("TEST.PRECISE_BN.ENABLED", True), "TEST.PRECISE_BN.ENABLED is True, which this trainer does not support"),
    ],
)
def test_options_of_evaluation_that_cannot_be_are_refused(
    train_cfg: ConfigBuilder, coco_folder: Path, opts: tuple[Any, ...], message: str
) -> None:
    cfg = train_cfg(*EVALUATE, "TEST.EVAL_PERIOD", 1, "SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP", *opts)
    cfg.DATASETS.EXTRA = [*cfg.DATASETS.EXTRA, f"more={coco_folder / 'boxes.json'}:{coco_folder}"]
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)


def test_evaluators_by_data_set(train_cfg: ConfigBuilder) -> None:
    cfg = train_cfg(*EVALUATE)
    check_test_sets(cfg)
    assert list(Trainer.build_evaluator(cfg, "squares").evaluators) == ["coco"]
    DatasetCatalog.register("own", lambda: DatasetCatalog.get("squares"))
    try:
        MetadataCatalog.get("own").set(evaluator_type=["coco", "magic"])
        with pytest.raises(ValueError, match=r"'own' asks for evaluator \['coco', 'magic'\]; known are"):
            check_test_sets(train_cfg("DATASETS.TEST", ("own",)))
    finally:
        DatasetCatalog.remove("own")
        MetadataCatalog.remove("own")


def test_a_real_evaluation_gives_coco_metrics(train_cfg: ConfigBuilder) -> None:
    cfg = train_cfg(*EVALUATE, "TEST.PRECISION", "bfloat16")
    trainer = Trainer(cfg)
    metrics = Trainer.test(cfg, trainer.model)["bbox"]
    assert {"AP", "AP50", "AP75", "AP-red square"} <= set(metrics)
    assert [f"bbox/{name}" for name in metrics if "-" not in name] == metric_names(cfg, "squares")
    assert os.path.isfile(f"{cfg.OUTPUT_DIR}/inference/squares/coco_instances_results.json")
