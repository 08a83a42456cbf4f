"""Interrupted and resumed training equals uninterrupted training, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode

ConfigBuilder = Callable[..., CfgNode]
Stop = Callable[[int, CfgNode], Trainer]


def trained(cfg: CfgNode, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def assert_same_state(left: Trainer, right: Trainer) -> None:
    assert_identical(left.model.state_dict(), right.model.state_dict())
    assert_identical(left.optimizer.state_dict(), right.optimizer.state_dict())
    assert left.scheduler.state_dict() == right.scheduler.state_dict()
    assert (left.iter, left.seed) == (right.iter, right.seed)


def assert_identical(left: Any, right: Any, where: str = "") -> None:
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_identical(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right)):
            assert_identical(*pair, f"{where}/{index}")
    else:
        assert left == right, where


LONG = ("SOLVER.MAX_ITER", 20, "SOLVER.CHECKPOINT_PERIOD", 10)


def test_resumed_at_a_checkpoint(train_cfg: ConfigBuilder, stopped_before: Stop) -> None:
    whole = trained(train_cfg(*LONG, output="whole"))
    stopped_before(10, train_cfg(*LONG, output="parts"))
    resumed = trained(train_cfg(*LONG, output="parts"), resume=True)
    assert resumed.start_iter == 10
    assert_same_state(whole, resumed)


def test_killed_between_checkpoints_with_another_number_of_workers(
    train_cfg: ConfigBuilder, stopped_before: Stop
) -> None:
    short = ("SOLVER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 3)
    whole = trained(train_cfg(*short, output="whole"))
    stopped_before(5, train_cfg(*short, output="parts"))
    resumed = trained(train_cfg(*short, "DATALOADER.NUM_WORKERS", 2, output="parts"), resume=True)
    assert resumed.start_iter == 3
    assert_same_state(whole, resumed)


def test_a_random_seed_goes_on(train_cfg: ConfigBuilder, stopped_before: Stop) -> None:
    short = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SEED", -1)
    first = stopped_before(2, train_cfg(*short, output="parts"))
    resumed = trained(train_cfg(*short, output="parts"), resume=True)
    assert resumed.seed == first.seed
    known = train_cfg(*short, "SEED", first.seed, output="whole")
    assert_same_state(trained(known), resumed)


def test_runs_without_a_seed_differ(train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        runs = [Trainer(train_cfg("SEED", -1)) for _ in range(3)]
    assert len({run.seed for run in runs}) == 3
    assert all(f"the seed of this run: {run.seed}" in caplog.text for run in runs)
    first, second = (run.model.pixel_decoder.level_embed for run in runs[:2])
    assert not torch.equal(first, second)


def test_a_finished_run_trained_longer_equals_a_longer_run(train_cfg: ConfigBuilder) -> None:
    # a constant rate: other schedules depend on the length of the training
    constant = ("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 2)
    best = ("DATASETS.TEST", ("squares",), "SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP")
    whole = trained(train_cfg(*constant, "SOLVER.MAX_ITER", 4, output="whole"))
    trained(train_cfg(*constant, *best, "SOLVER.MAX_ITER", 2, output="parts"))
    resumed = trained(train_cfg(*constant, *best, "SOLVER.MAX_ITER", 4, output="parts"), resume=True)
    assert resumed.start_iter == 2
    assert_same_state(whole, resumed)


def test_sgd_goes_on_with_its_momentum(train_cfg: ConfigBuilder, stopped_before: Stop) -> None:
    sgd = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MOMENTUM", 0.9)
    whole = trained(train_cfg(*sgd, output="whole"))
    stopped_before(2, train_cfg(*sgd, output="parts"))
    assert_same_state(whole, trained(train_cfg(*sgd, output="parts"), resume=True))


def test_evaluations_do_not_disturb_training(train_cfg: ConfigBuilder) -> None:
    plain = trained(train_cfg(output="plain"))
    evaluated = trained(train_cfg("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 1, output="evaluated"))
    assert_same_state(plain, evaluated)


def test_resume_without_a_checkpoint_starts_from_the_named_weights(
    train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    first = trained(train_cfg(output="first"))
    weights = f"{first.cfg.OUTPUT_DIR}/model_final.pth"
    trainer = Trainer(train_cfg("MODEL.WEIGHTS", weights, "SEED", 8, output="second"))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert not trainer.optimizer.state
    assert_identical(first.model.state_dict(), trainer.model.state_dict())


def test_another_number_of_pictures_is_said(train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture) -> None:
    short = ("SOLVER.MAX_ITER", 1)
    Trainer(train_cfg(*short)).train()
    for pictures, said in ((train_cfg().SOLVER.IMS_PER_BATCH, False), (1, True)):
        caplog.clear()
        Trainer(train_cfg(*short, "SOLVER.IMS_PER_BATCH", pictures)).resume_or_load(True)
        assert ("it goes on with 1, and in the data where it would stand" in caplog.text) == said


def test_a_seed_that_was_changed_is_said(train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture) -> None:
    trained(train_cfg("SOLVER.MAX_ITER", 1))
    trainer = Trainer(train_cfg("SOLVER.MAX_ITER", 2, "SEED", 4))
    with caplog.at_level("WARNING"):
        trainer.resume_or_load(resume=True)
    assert trainer.seed == 4
    assert "the run so far had the seed 3; it goes on with SEED 4" in caplog.text
