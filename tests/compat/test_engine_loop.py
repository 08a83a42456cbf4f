"""The training loop and its hooks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import detectron2.engine.hooks as hooks
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
)
from detectron2.utils.events import EventWriter
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn


class Regression(nn.Module):
    """Two losses on pairs of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        error = self.linear(batch[:, :1]) - batch[:, 1:]
        return {"loss_square": (error**2).mean(), "loss_absolute": error.abs().mean()}


def batches() -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.rand(8, 1, generator=generator)
        yield torch.cat([x, 3 * x + 1], dim=1)


def simple_trainer(**options: Any) -> SimpleTrainer:
    torch.manual_seed(0)
    model = Regression()
    return SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.2), **options)


class Recorder(HookBase):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_train(self) -> None:
        self.calls.append("before_train")

    def after_train(self) -> None:
        self.calls.append("after_train")

    def before_step(self) -> None:
        self.calls.append(f"before_step {self.trainer.iter} {self.trainer.storage.iter}")

    def after_backward(self) -> None:
        self.calls.append("after_backward")

    def after_step(self) -> None:
        self.calls.append("after_step")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


# --- the loop


def test_hooks_are_called_in_order() -> None:
    trainer, recorder = simple_trainer(), Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(5, 7)
    step = ["after_backward", "after_step"]
    expected = ["before_train", "before_step 5 5", *step, "before_step 6 6", *step, "after_train"]
    assert recorder.calls == expected
    assert trainer.iter == 7


@pytest.mark.parametrize("asynchronous", [False, True])
def test_simple_trainer_learns_and_records(asynchronous: bool) -> None:
    trainer = simple_trainer(async_write_metrics=asynchronous)
    trainer.train(0, 150)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses[-1] < 0.1 * losses[0] and len(losses) == 150
    latest = trainer.storage.latest()
    parts = latest["loss_square"][0] + latest["loss_absolute"][0]
    assert latest["total_loss"][0] == pytest.approx(parts)
    assert latest["data_time"][0] >= 0


def test_gradients_do_not_pile_up() -> None:
    ours, early = simple_trainer(), simple_trainer(zero_grad_before_forward=True)
    ours.train(0, 5)
    early.train(0, 5)
    torch.testing.assert_close(ours.model.linear.weight, early.model.linear.weight, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_the_training_before_the_weights_change() -> None:
    trainer, recorder = simple_trainer(), Recorder()
    trainer.register_hooks([recorder])
    trainer.data_loader = iter([torch.tensor([[1.0, math.nan]])])
    before = trainer.model.linear.weight.clone()
    with pytest.raises(FloatingPointError, match="iteration=?.?0"):
        trainer.train(0, 3)
    assert recorder.calls[-1] == "after_train"
    torch.testing.assert_close(trainer.model.linear.weight, before)


def test_state_is_saved_and_loaded() -> None:
    trainer, other = simple_trainer(), simple_trainer()
    trainer.optimizer.param_groups[0]["lr"] = 0.123
    trainer.register_hooks([Recorder()])
    recorder = Recorder()
    other.register_hooks([recorder])
    trainer.train(0, 3)
    other.load_state_dict(trainer.state_dict())
    assert other.iter == 3 and other.optimizer.param_groups[0]["lr"] == 0.123
    assert recorder.loaded["calls"] > 5
    without_hooks = simple_trainer()
    without_hooks.load_state_dict(trainer.state_dict())  # only warns


def test_reset_data_loader() -> None:
    trainer = simple_trainer()
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: iter([torch.tensor([[0.0, 0.0]])]))
    trainer.train(1, 2)
    assert next(iter(trainer.data_loader), None) is None


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_learns(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    trainer = AMPTrainer(model, batches(), optimizer, precision=precision, log_grad_scaler=True)
    trainer.train(0, 100)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses[-1] < 0.2 * losses[0]
    assert "[metric]grad_scaler" in trainer.storage.latest()
    assert "grad_scaler" in trainer.state_dict()


# --- hooks


def test_learning_rate_hook_follows_a_multiplier() -> None:
    trainer = simple_trainer()
    trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, LinearParamScheduler(1.0, 0.0))])
    trainer.train(0, 10)
    rates = [value for value, _ in trainer.storage.history("lr").values()]
    np.testing.assert_allclose(rates, 0.2 * (1 - np.arange(10) / 10))


def test_group_whose_rate_is_shown() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(5)]
    largest = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=1.0)
    assert hooks.LRScheduler.get_best_param_group_id(largest) == 1
    single = torch.optim.SGD([{"params": [p], "lr": 0.1 if i else 1.0} for i, p in enumerate(parameters)], lr=1.0)
    assert hooks.LRScheduler.get_best_param_group_id(single) == 1


def test_evaluation_and_best_checkpoint(tmp_path: Path) -> None:
    values = iter([10.0, 30.0, math.nan, 20.0])
    trainer = simple_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    saved: list[int] = []
    weights: list[torch.Tensor] = []

    def evaluate() -> dict[str, Any]:
        saved.append(trainer.iter)
        weights.append(trainer.model.linear.weight.detach().clone())
        return {"bbox": {"AP": next(values)}}

    trainer.register_hooks([hooks.EvalHook(2, evaluate), hooks.BestCheckpointer(2, checkpointer, "bbox/AP")])
    trainer.train(0, 8)
    assert saved == [1, 3, 5, 8]  # the last one after training
    assert trainer.storage.latest()["bbox/AP"][0] == 20.0
    content = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert content["iteration"] == 3
    torch.testing.assert_close(content["model"]["linear.weight"], weights[1])


def test_evaluation_refuses_what_is_not_a_number() -> None:
    trainer = simple_trainer()
    trainer.register_hooks([hooks.EvalHook(1, lambda: {"a": {"b": "good"}})])
    with pytest.raises(ValueError, match="a/b"):
        trainer.train(0, 2)


def test_no_evaluation_after_a_failed_training() -> None:
    calls: list[int] = []
    trainer = simple_trainer()
    trainer.data_loader = iter([])
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(1))])
    with pytest.raises(StopIteration):
        trainer.train(0, 5)
    assert calls == []


def test_periodic_checkpoints(tmp_path: Path) -> None:
    trainer = simple_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=1)])
    trainer.train(0, 5)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000003.pth", "model_final.pth"]


def test_writers_write_in_time_and_are_closed() -> None:
    class Writer(EventWriter):
        written: list[int] = []
        closed = False

        def write(self) -> None:
            self.written.append(trainer.iter)

        def close(self) -> None:
            self.closed = True

    trainer, writer = simple_trainer(), Writer()
    trainer.register_hooks([hooks.PeriodicWriter([writer], period=2)])
    trainer.train(0, 5)
    assert writer.written == [1, 3, 4, 5] and writer.closed


def test_timer_and_callbacks() -> None:
    trainer = simple_trainer()
    seen: list[int] = []
    callback = hooks.CallbackHook(after_step=lambda t: seen.append(t.iter), before_train=lambda t: seen.append(-1))
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=2), callback])
    trainer.train(0, 4)
    assert seen == [-1, 0, 1, 2, 3]
    assert [iteration for _, iteration in trainer.storage.history("time").values()] == [1, 2, 3]


def test_trainer_without_a_step_says_so() -> None:
    with pytest.raises(NotImplementedError, match="run_step"):
        TrainerBase().run_step()
