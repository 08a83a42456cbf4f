"""Averaged weights: their numbers, their way into files and back, and that they disturb nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.cli.train import build_parser, evaluate
from grounding_dino.engine.ema import WeightAverage
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import build_model

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

ConfigBuilder = Callable[..., CfgNode]
Stop = Callable[[int, CfgNode], Trainer]
EMA = ("SOLVER.EMA.ENABLED_ON", True, "SOLVER.EMA.DECAY", 0.5)
EVALUATE = ("DATASETS.TEST", ("squares",))


def trained(cfg: CfgNode, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def content_of(trainer: Trainer, name: str = "model_final") -> dict[str, Any]:
    return torch.load(f"{trainer.cfg.OUTPUT_DIR}/{name}.pth", weights_only=True)


@pytest.mark.parametrize(("decay", "second"), [(0.9999, 2 / 11), (0.15, 0.15)])
def test_the_average_by_hand(decay: float, second: float) -> None:
    # decays 1/10 and 2/11 while the average is young, but never more than the one asked for
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay)
    values = []
    for weight in (1.0, 2.0):
        nn.init.constant_(model.weight, weight)
        average.update()
        with average.applied():
            values.append(float(model.weight.detach()))
        assert float(model.weight.detach()) == weight
    assert values == pytest.approx([0.9, second * 0.9 + (1 - second) * 2.0])


def test_the_models_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    average = WeightAverage(model, 0.9)
    nn.init.normal_(model.weight)
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(model.weight, before)
        raise KeyError
    assert torch.equal(model.weight, own)


def test_frozen_parameters_and_buffers_are_the_models_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.9)
    model(torch.randn(4, 2))
    with average.applied():
        assert not torch.equal(model[1].running_mean, torch.zeros(2))
    assert set(average.state_dict()["weights"]) == {"1.weight", "1.bias"}


def test_tied_weights_are_averaged_under_both_names() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    weights = WeightAverage(model, 0.9).state_dict()["weights"]
    assert weights["first.weight"] is weights["second.weight"]
    assert set(weights) == set(model.state_dict())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(train_cfg: ConfigBuilder, decay: float) -> None:
    with pytest.raises(ValueError, match=rf"SOLVER.EMA.DECAY is {decay}; give a number from 0 to below 1"):
        Trainer(train_cfg(*EMA, "SOLVER.EMA.DECAY", decay))


def test_averaging_does_not_disturb_training_and_its_decay_counts(train_cfg: ConfigBuilder) -> None:
    plain = trained(train_cfg(output="plain"))
    averaged = trained(train_cfg(*EMA, output="averaged"))
    assert_equal(plain.model.state_dict(), averaged.model.state_dict())
    assert "ema" not in content_of(plain)
    weights = content_of(averaged)["ema"]["weights"]
    assert any(not torch.equal(tensor, averaged.model.state_dict()[name]) for name, tensor in weights.items())
    faster = trained(train_cfg(*EMA, "SOLVER.EMA.DECAY", 0.05, output="faster"))
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in content_of(faster)["ema"]["weights"].items())


@pytest.mark.parametrize("opts", [(), ("SOLVER.AMP.ENABLED", True), ("SOLVER.FREEZE", ["^backbone"])])
def test_an_interrupted_run_has_the_same_average(
    train_cfg: ConfigBuilder, opts: tuple[Any, ...], stopped_before: Stop
) -> None:
    opts = (*EMA, *opts, "SOLVER.CHECKPOINT_PERIOD", 2)
    whole = trained(train_cfg(*opts, output="whole"))
    stopped_before(3, train_cfg(*opts, output="parts"))
    resumed = trained(train_cfg(*opts, output="parts"), resume=True)
    assert resumed.start_iter == 2
    left, right = whole.average.state_dict(), resumed.average.state_dict()
    assert left["steps"] == right["steps"] == 4
    assert_equal(left["parameters"], right["parameters"])
    assert_equal(content_of(whole)["ema"]["weights"], content_of(resumed)["ema"]["weights"])


def test_a_run_that_had_no_average_begins_one_with_its_weights(train_cfg: ConfigBuilder) -> None:
    first = trained(train_cfg("SOLVER.MAX_ITER", 2))
    second = Trainer(train_cfg(*EMA, "SOLVER.MAX_ITER", 3))
    second.resume_or_load(True)
    own = {name: p.detach().clone() for name, p in second.model.named_parameters()}
    assert_equal(own, {name: p.detach() for name, p in first.model.named_parameters()})
    assert_equal(second.average.state_dict()["parameters"], own)


def test_a_resumed_run_says_that_it_drops_the_average(
    train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    trained(train_cfg(*EMA, "SOLVER.MAX_ITER", 1))
    for opts, told in (((), True), (EMA, False)):
        caplog.clear()
        Trainer(train_cfg(*opts, "SOLVER.MAX_ITER", 2)).resume_or_load(True)
        assert ("averaged weights, which this run drops" in caplog.text) == told


def test_the_average_of_other_parameters_is_refused(train_cfg: ConfigBuilder) -> None:
    trained(train_cfg(*EMA, "SOLVER.MAX_ITER", 1, "SOLVER.FREEZE", ["^backbone"]))
    with pytest.raises(ValueError, match="is of other parameters than this run trains: .*backbone.*SOLVER.FREEZE"):
        Trainer(train_cfg(*EMA)).resume_or_load(True)


def test_files_are_used_with_the_average_where_the_configuration_says_so(
    train_cfg: ConfigBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(train_cfg(*EMA, "SOLVER.FREEZE", ["^backbone"]))
    content = content_of(trainer)
    expected = {**content["model"], **content["ema"]["weights"]}
    assert any(not torch.equal(tensor, content["model"][name]) for name, tensor in expected.items())
    file = f"{trainer.cfg.OUTPUT_DIR}/model_final.pth"
    assert_equal(build_model(train_cfg(*EMA), file).state_dict(), expected)
    assert_equal(build_model(train_cfg(), file).state_dict(), content["model"])
    plain = trained(train_cfg("SOLVER.MAX_ITER", 1, output="plain"))
    evaluated: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(Trainer, "test", lambda cfg, model: evaluated.append(model.state_dict()) or {})
    for flags, more in (([], ("MODEL.WEIGHTS", file)), (["--resume"], ())):
        args = build_parser().parse_args(["--config-file", "swin_t_ogc", "--eval-only", *flags])
        evaluate(train_cfg(*EMA, *EVALUATE, *more), args)
        assert_equal(evaluated.pop(), expected)
    with caplog.at_level("INFO"):
        build_model(train_cfg(*EMA), f"{plain.cfg.OUTPUT_DIR}/model_final.pth")
    assert "holds no averaged weights: its own are used" in caplog.text
    content["ema"]["weights"]["backbone.gone"] = torch.zeros(1)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"averaged weights \(SOLVER.EMA\) do not fit the model: backbone.gone"):
        build_model(train_cfg(*EMA), file)


def test_the_average_is_evaluated_beside_the_trained_weights(
    train_cfg: ConfigBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, float]] = []

    def test(cls: type[Trainer], cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        norm = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
        seen.append((cfg.OUTPUT_DIR, norm))
        return {"bbox": {"AP": norm, "AP-square": 1.0}}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    best = ("SOLVER.BEST_CHECKPOINT_METRIC", "ema/bbox/AP", "TEST.EVAL_PERIOD", 2)
    cfg = train_cfg(*EMA, *EVALUATE, *best)
    with caplog.at_level("INFO"):
        trainer = Trainer(cfg)
        trainer.resume_or_load(False)
        results = trainer.train()
    assert [folder for folder, _ in seen] == [cfg.OUTPUT_DIR, f"{cfg.OUTPUT_DIR}/ema"] * 2
    latest = trainer.storage.latest()
    assert latest["bbox/AP"][0] == seen[2][1] != seen[3][1] == latest["ema/bbox/AP"][0]
    assert results == {"bbox": {"AP": seen[2][1], "AP-square": 1.0}}
    lines = [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]
    assert lines[-1]["ema/bbox/AP"] == seen[3][1]
    assert f"squares, averaged weights  bbox AP  {seen[3][1]:.2f}" in caplog.text
    assert content_of(trainer, "model_best")["best_value"] == max(seen[1][1], seen[3][1])
