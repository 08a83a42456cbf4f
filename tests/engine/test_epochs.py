"""Schedules in epochs."""

from __future__ import annotations

from collections.abc import Callable

from grounding_dino.engine.epochs import in_iterations
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import get_cfg, merge_options

import pytest
from detectron2.config import CfgNode

EPOCHS = ("SOLVER.EPOCHS.MAX", 3, "SOLVER.EPOCHS.STEPS", [1, 2.5])
PERIODS = ("SOLVER.EPOCHS.CHECKPOINT_PERIOD", 1, "SOLVER.EPOCHS.EVAL_PERIOD", 2)


def with_options(*options: object) -> CfgNode:
    cfg = get_cfg()
    merge_options(cfg, ["SOLVER.IMS_PER_BATCH", 4, *options])
    return cfg


def schedule(cfg: CfgNode) -> tuple[object, ...]:
    solver = cfg.SOLVER
    return solver.MAX_ITER, tuple(solver.STEPS), solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD


def test_an_epoch_is_every_picture_once() -> None:
    cfg = with_options(*EPOCHS, *PERIODS)
    before = schedule(cfg)
    assert schedule(in_iterations(cfg, 17)) == (15, (5, 12), 5, 10)  # 17 pictures: 5 batches of 4
    assert schedule(cfg) == before, "the given configuration stays as it is"


def test_periods_of_zero_leave_those_in_iterations() -> None:
    cfg = with_options(*EPOCHS, "SOLVER.CHECKPOINT_PERIOD", 7, "TEST.EVAL_PERIOD", 9)
    assert schedule(in_iterations(cfg, 16))[2:] == (7, 9)


def test_without_epochs_nothing_changes() -> None:
    cfg = with_options()
    assert in_iterations(cfg, 17) is cfg


def test_iterations_on_the_command_line_win_over_epochs_of_a_recipe() -> None:
    cfg = with_options(*EPOCHS)
    merge_options(cfg, ["SOLVER.MAX_ITER", 10])
    assert in_iterations(cfg, 17).SOLVER.MAX_ITER == 10


@pytest.mark.parametrize("options", [("SOLVER.EPOCHS.MAX", -1), (*EPOCHS, "SOLVER.EPOCHS.STEPS", [3])])
def test_what_cannot_be_is_refused(options: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="SOLVER.EPOCHS is MAX .* smaller than MAX"):
        in_iterations(with_options(*options), 17)


def test_a_training_ends_after_its_epochs(train_cfg: Callable[..., CfgNode]) -> None:
    trainer = Trainer(train_cfg("SOLVER.IMS_PER_BATCH", 4, "SOLVER.EPOCHS.MAX", 2))  # of 8 pictures
    trainer.train()
    assert (trainer.max_iter, trainer.iter) == (4, 4)
