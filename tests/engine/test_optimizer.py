"""Optimizers: groups by name, frozen parts, and options that do not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grounding_dino.engine.optimizer import build_optimizer, check_state, freeze_parameters, parameter_groups
from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

ConfigBuilder = Callable[..., CfgNode]


@pytest.fixture
def model() -> nn.Module:
    parts = {"backbone": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "head": nn.Linear(3, 1), "tied": nn.Linear(3, 1)}
    module = nn.ModuleDict(parts)
    module["tied"].weight = module["head"].weight
    return module


def groups_by_name(cfg: CfgNode, model: nn.Module) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(cfg, model)
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_rates_and_decay_by_name(tiny_cfg: CfgNode, model: nn.Module) -> None:
    tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.WEIGHT_DECAY, tiny_cfg.SOLVER.WEIGHT_DECAY_NORM = 1.0, 0.5, 0.25
    tiny_cfg.SOLVER.WEIGHT_DECAY_BIAS, tiny_cfg.SOLVER.BIAS_LR_FACTOR = 0.0, 2.0
    tiny_cfg.SOLVER.PARAMETER_GROUPS = [["^backbone\\.", 0.1, 0.5], ["bone", 7.0, 7.0]]
    assert groups_by_name(tiny_cfg, model) == {
        "backbone.weight": (0.1, 0.25),
        "backbone.bias": (0.2, 0.0),
        "norm.weight": (1.0, 0.25),
        "norm.bias": (2.0, 0.25),
        "head.weight": (1.0, 0.5),
        "head.bias": (2.0, 0.0),
        "tied.bias": (2.0, 0.0),
    }


def test_frozen_parameters_are_in_no_group(tiny_cfg: CfgNode, model: nn.Module) -> None:
    tiny_cfg.SOLVER.FREEZE = ["^backbone", r"\.bias$"]
    assert freeze_parameters(tiny_cfg, model) == [
        "backbone.bias",
        "backbone.weight",
        "head.bias",
        "norm.bias",
        "tied.bias",
    ]
    assert set(groups_by_name(tiny_cfg, model)) == {"norm.weight", "head.weight"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("OPTIMIZER", "ADAM", "unknown SOLVER.OPTIMIZER 'ADAM'; choose from .*ADAMW"),
        ("FREEZE", ["^bert"], "SOLVER.FREEZE has '\\^bert', but no parameter's name matches it"),
        ("FREEZE", ["("], "SOLVER.FREEZE has '\\(', which is no regular expression"),
        ("FREEZE", ["."], "leaves no parameter to train"),
        ("PARAMETER_GROUPS", [["*", 1.0, 1.0]], "SOLVER.PARAMETER_GROUPS has '\\*', which is no regular"),
        ("PARAMETER_GROUPS", [["^head", 1.0]], r"has \['\^head', 1.0\]; an entry is \[pattern, learning-rate"),
        ("PARAMETER_GROUPS", [[0.1, "^head", 1.0]], "an entry is"),
    ],
)
def test_what_does_not_exist_is_refused(
    tiny_cfg: CfgNode, model: nn.Module, key: str, value: Any, message: str
) -> None:
    tiny_cfg.SOLVER[key] = value
    with pytest.raises(ValueError, match=message):
        build_optimizer(tiny_cfg, model)


def test_a_pattern_of_rates_that_finds_nothing_is_said(
    tiny_cfg: CfgNode, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_cfg.SOLVER.PARAMETER_GROUPS = [["^backbone", 0.1, 1.0], ["^haed", 2.0, 1.0]]
    parameter_groups(tiny_cfg, model)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["SOLVER.PARAMETER_GROUPS has '^haed', but no parameter's name matches it"]


@pytest.mark.parametrize(("key", "value"), [("FREEZE", ["^norm"]), ("OPTIMIZER", "SGD"), ("PARAMETER_GROUPS", [])])
def test_the_state_of_another_optimizer_is_refused(tiny_cfg: CfgNode, model: nn.Module, key: str, value: Any) -> None:
    tiny_cfg.SOLVER.PARAMETER_GROUPS = [["^backbone", 0.1, 1.0]]
    state = build_optimizer(tiny_cfg, model).state_dict()
    check_state(build_optimizer(tiny_cfg, model), state)
    tiny_cfg.SOLVER[key] = value
    with pytest.raises(ValueError, match="with another optimizer or other parameters to train .* MODEL.LORA"):
        check_state(build_optimizer(tiny_cfg, model), state)


def test_rates_that_a_resumed_run_does_not_take_up_are_said(
    train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    opts = ("SOLVER.PARAMETER_GROUPS", [], "SOLVER.WEIGHT_DECAY_NORM", 1e-4, "SOLVER.MAX_ITER")
    with caplog.at_level("INFO"):
        Trainer(train_cfg(*opts, 1)).train()
        Trainer(train_cfg(*opts, 2)).resume_or_load(True)
        assert "goes on with the learning rates" not in caplog.text
        Trainer(train_cfg(*opts, 2, "SOLVER.BASE_LR", 0.5)).resume_or_load(True)
    assert "of its checkpoint, [(0.001, 0.0001)], not with the [(0.5, 0.0001)] that" in caplog.text


def test_optimizers_by_name(tiny_cfg: CfgNode, model: nn.Module) -> None:
    assert isinstance(build_optimizer(tiny_cfg, model), torch.optim.AdamW)
    tiny_cfg.SOLVER.OPTIMIZER, tiny_cfg.SOLVER.NESTEROV = "SGD", True
    sgd = build_optimizer(tiny_cfg, model)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["nesterov"] and sgd.param_groups[0]["momentum"] == tiny_cfg.SOLVER.MOMENTUM


@pytest.mark.parametrize(
    "opts",
    [("SOLVER.FREEZE", [r"^text_encoder\.bert\."]), ("MODEL.TEXT_ENCODER.FREEZE_ON", True)],
    ids=["solver", "encoder"],
)
def test_a_frozen_language_model_keeps_its_weights_bit_for_bit(train_cfg: ConfigBuilder, opts: tuple[Any, ...]) -> None:
    trainer = Trainer(train_cfg(*opts, "SOLVER.WEIGHT_DECAY", 0.5))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert not any(name.startswith("text_encoder.bert.") for name in changed)
    assert {"text_encoder.projection.weight", "transformer_decoder.norm.weight"} <= changed
