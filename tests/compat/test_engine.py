"""The training loop, its hooks, the default workflow and several processes."""

import argparse
import json
import logging
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
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
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


# --- the default workflow


class ToyDetector(nn.Module):
    """Says that the whole picture is one object; learns a number from the mean of the pictures."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.5)
        self.to(cfg.MODEL.DEVICE)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        if self.training:
            brightness = torch.stack([x["image"].float().mean() / 255 for x in batched_inputs])
            return {"loss_toy": ((self.dropout(brightness + self.scale) - 2) ** 2).mean()}
        results = []
        for record in batched_inputs:
            size = (record["height"], record["width"])
            instances = Instances(size, pred_boxes=Boxes(torch.tensor([[0.0, 0.0, size[1], size[0]]])))
            instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
            results.append({"instances": instances, "scale": self.scale.item()})
        return results


class CountingEvaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += len(outputs)

    def evaluate(self) -> dict[str, Any]:
        return {"bbox": {"AP": float(self.count)}}


class ToyTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        return CountingEvaluator()


@pytest.fixture
def toy_cfg(registered: str, small_cfg: Any, tmp_path: Path) -> Any:
    if "ToyDetector" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(ToyDetector)
    small_cfg.MODEL.META_ARCHITECTURE = "ToyDetector"
    small_cfg.MODEL.WEIGHTS = ""
    small_cfg.OUTPUT_DIR = str(tmp_path / "output")
    small_cfg.SOLVER.MAX_ITER = 6
    small_cfg.SOLVER.STEPS = (4,)
    small_cfg.SOLVER.WARMUP_ITERS = 2
    small_cfg.SOLVER.CHECKPOINT_PERIOD = 3
    small_cfg.TEST.EVAL_PERIOD = 4
    return small_cfg


@pytest.mark.parametrize("amp", [False, True])
def test_default_trainer_trains_evaluates_and_writes(toy_cfg: Any, amp: bool) -> None:
    toy_cfg.SOLVER.AMP.ENABLED = amp
    trainer = ToyTrainer(toy_cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results == {"bbox": {"AP": 4.0}}
    assert trainer.model.scale.item() > 0
    output = Path(toy_cfg.OUTPUT_DIR)
    names = sorted(path.name for path in output.glob("*.pth"))
    assert names == ["model_0000002.pth", "model_0000005.pth", "model_final.pth"]
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert any(line.get("bbox/AP") == 4.0 for line in lines)
    assert any("total_loss" in line and "lr" in line for line in lines)


def test_default_trainer_goes_on_where_it_stopped(toy_cfg: Any) -> None:
    whole = ToyTrainer(toy_cfg)
    whole.train()
    checkpoint = Path(toy_cfg.OUTPUT_DIR, "last_checkpoint")
    checkpoint.write_text("model_0000002.pth")
    resumed = ToyTrainer(toy_cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    rates = [whole.storage.history("lr").values()[3:], None]
    resumed.train()
    rates[1] = resumed.storage.history("lr").values()
    assert rates[0] == rates[1]
    assert resumed.iter == 6
    finished = ToyTrainer(toy_cfg)
    finished.resume_or_load(resume=True)
    assert finished.start_iter == 6
    assert finished.train() == {"bbox": {"AP": 4.0}}  # nothing left to train


def test_weights_are_loaded_when_not_resuming(toy_cfg: Any, tmp_path: Path) -> None:
    torch.save({"model": {"scale": torch.tensor([7.0])}}, tmp_path / "weights.pth")
    toy_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    trainer = ToyTrainer(toy_cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0 and trainer.model.scale.item() == 7.0


def test_test_on_several_data_sets(toy_cfg: Any) -> None:
    model = ToyTrainer.build_model(toy_cfg)
    toy_cfg.DATASETS.TEST = (toy_cfg.DATASETS.TEST[0],) * 1
    assert ToyTrainer.test(toy_cfg, model) == {"bbox": {"AP": 4.0}}
    assert ToyTrainer.test(toy_cfg, model, [CountingEvaluator()]) == {"bbox": {"AP": 4.0}}
    assert DefaultTrainer.test(toy_cfg, model) == {}  # no evaluator: a warning
    with pytest.raises((ValueError, AssertionError)):
        ToyTrainer.test(toy_cfg, model, [CountingEvaluator(), CountingEvaluator()])


def test_scaling_to_the_number_of_processes(toy_cfg: Any) -> None:
    toy_cfg.SOLVER.REFERENCE_WORLD_SIZE, toy_cfg.SOLVER.IMS_PER_BATCH = 8, 16
    toy_cfg.SOLVER.MAX_ITER, toy_cfg.SOLVER.STEPS, toy_cfg.SOLVER.BASE_LR = 1000, (600, 800), 0.08
    toy_cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(toy_cfg, 2)
    assert scaled.is_frozen() and scaled.SOLVER.IMS_PER_BATCH == 4 and scaled.SOLVER.MAX_ITER == 4000
    assert scaled.SOLVER.STEPS == (2400, 3200) and scaled.SOLVER.BASE_LR == pytest.approx(0.02)
    assert toy_cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(toy_cfg, 8) is toy_cfg


def test_predictor(toy_cfg: Any, tmp_path: Path) -> None:
    torch.save({"model": {"scale": torch.tensor([7.0])}}, tmp_path / "weights.pth")
    toy_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    predictor = DefaultPredictor(toy_cfg)
    output = predictor(np.zeros((50, 80, 3), dtype=np.uint8))
    assert output["scale"] == 7.0 and output["instances"].image_size == (50, 80)
    assert predictor.metadata.name == toy_cfg.DATASETS.TEST[0] and not predictor.model.training


def test_setup_writes_the_config_and_seeds(toy_cfg: Any) -> None:
    toy_cfg.SEED = 5
    level, handlers = logging.getLogger("detectron2").level, list(logging.getLogger("detectron2").handlers)
    draws = []
    for _ in range(2):
        default_setup(toy_cfg, argparse.Namespace(config_file="", eval_only=False))
        draws.append((np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert "META_ARCHITECTURE: ToyDetector" in Path(toy_cfg.OUTPUT_DIR, "config.yaml").read_text()
    assert "META_ARCHITECTURE" in Path(toy_cfg.OUTPUT_DIR, "log.txt").read_text()
    logger = logging.getLogger("detectron2")
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = handlers, True


def test_command_line() -> None:
    args = default_argument_parser().parse_args(["--config-file", "x.yaml", "--num-gpus", "2", "SEED", "3"])
    assert args.config_file == "x.yaml" and args.num_gpus == 2 and args.opts == ["SEED", "3"]
    assert not args.resume and not args.eval_only and args.dist_url.startswith("tcp://127.0.0.1:")


# --- several processes


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_launch_in_this_process(num_gpus: int) -> None:
    seen: list[Any] = []
    launch(lambda *args: seen.append(args), num_gpus, args=(1, 2))
    assert seen == [(1, 2)]


def test_launch_on_several_machines_needs_an_address() -> None:
    with pytest.raises((ValueError, AssertionError)):
        launch(print, 1, num_machines=2, dist_url="auto")


WORKER = """
import grounding_dino
import json, torch
from pathlib import Path
from torch import nn
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import SimpleTrainer, create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
import itertools


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": ((self.weight - x) ** 2).sum()} if self.training else x


class Gather(DatasetEvaluator):
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen.extend(inputs)

    def evaluate(self):
        parts = comm.gather(self.seen)
        return {"all": list(itertools.chain(*parts))} if comm.is_main_process() else None


def main(folder):
    rank = comm.get_rank()
    model = create_ddp_model(Model())
    data = itertools.repeat(torch.tensor([1.0 + 2 * rank]))  # 1 and 3: together they pull to 2
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.25))
    trainer.train(0, 20)
    indices = list(itertools.islice(TrainingSampler(10, seed=1), 5))
    results = inference_on_dataset(nn.Identity(), build_detection_test_loader(list(range(5)), mapper=None), Gather())
    report = {
        "weight": model.module.weight.item(),
        "world": comm.get_world_size(),
        "local": comm.get_local_rank(),
        "loss": trainer.storage.latest().get("total_loss", [None])[0],
        "indices": indices,
        "results": results,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(report))
"""


@pytest.mark.slow
def test_launch_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compat_launch_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import compat_launch_worker  # type: ignore[import-not-found]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch(compat_launch_worker.main, 2, dist_url="auto", args=(str(tmp_path),))
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [report["world"] for report in reports] == [2, 2] and [report["local"] for report in reports] == [0, 1]
    assert reports[0]["weight"] == reports[1]["weight"] == pytest.approx(2, abs=1e-4)
    assert reports[0]["loss"] == pytest.approx(1, abs=1e-3) and reports[1]["loss"] is None
    assert sorted(reports[0]["indices"] + reports[1]["indices"]) == list(range(10))
    assert reports[0]["results"] == {"all": [0, 1, 2, 3, 4]} and reports[1]["results"] == {}


def test_trainer_without_a_step_says_so() -> None:
    with pytest.raises(NotImplementedError, match="run_step"):
        TrainerBase().run_step()
