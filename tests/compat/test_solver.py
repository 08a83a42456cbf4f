"""Parameter groups, gradient clipping and learning-rate schedules."""

from __future__ import annotations

import math

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.LayerNorm(3)
        self.tied = self.linear
        self.frozen = nn.Linear(2, 2)
        for parameter in self.frozen.parameters():
            parameter.requires_grad = False


def settings_by_name(model: nn.Module, groups: list[dict]) -> dict[str, dict[str, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for parameter in group["params"]
    }


def test_parameter_groups() -> None:
    model = Model()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        lr_factor_func=lambda name: 0.5 if name.startswith("linear") else 1.0,
    )
    assert settings_by_name(model, groups) == {
        "linear.weight": {"lr": 0.5, "weight_decay": 0.1},
        "linear.bias": {"lr": 2.0, "weight_decay": 0.1},
        "norm.weight": {"lr": 1.0, "weight_decay": 0.0},
        "norm.bias": {"lr": 2.0, "weight_decay": 0.0},
    }


def test_equal_settings_share_a_group() -> None:
    groups = get_default_optimizer_params(Model(), base_lr=1.0, weight_decay=0.1)
    assert len(groups) == 1 and len(groups[0]["params"]) == 4


def test_overrides_by_last_name() -> None:
    model = Model()
    groups = get_default_optimizer_params(model, weight_decay=0.1, overrides={"bias": {"weight_decay": 0.0, "lr": 3.0}})
    found = settings_by_name(model, groups)
    assert found["linear.bias"] == {"weight_decay": 0.0, "lr": 3.0}
    assert found["linear.weight"] == {"weight_decay": 0.1}


def test_bias_factor_needs_base_rate() -> None:
    with pytest.raises(ValueError, match="base_lr"):
        get_default_optimizer_params(Model(), bias_lr_factor=2.0)


@pytest.mark.parametrize(("kind", "expected"), [("value", [1.0, -1.0]), ("norm", [0.6, -0.8])])
@pytest.mark.parametrize("on_class", [True, False])
def test_gradient_clipping(kind: str, expected: list[float], on_class: bool) -> None:
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    parameter = nn.Parameter(torch.zeros(2))
    if on_class:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)([parameter], lr=1.0)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD([parameter], lr=1.0))  # type: ignore[arg-type]
    assert isinstance(optimizer, torch.optim.SGD)
    parameter.grad = torch.tensor([3.0, -4.0])
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-value for value in expected], abs=1e-5)


def test_no_clipping_unless_enabled() -> None:
    assert maybe_add_gradient_clipping(get_cfg(), torch.optim.AdamW) is torch.optim.AdamW


def test_optimizer_from_config() -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.25
    optimizer = build_optimizer(cfg, Model())
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["lr"] == 0.25 and group["momentum"] == 0.9 for group in optimizer.param_groups)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0001, 0.0}


def rates(cfg: CfgNode) -> list[float]:
    """The learning rate at each iteration of a training from `cfg`."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(cfg.SOLVER.MAX_ITER - 1):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def schedule_config(name: str) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.BASE_LR = 5.0
    cfg.SOLVER.MAX_ITER = 30
    cfg.SOLVER.WARMUP_ITERS = 5
    cfg.SOLVER.WARMUP_FACTOR = 0.001
    cfg.SOLVER.STEPS = (10, 15, 20)
    return cfg


def test_multi_step_with_warm_up() -> None:
    found = rates(schedule_config("WarmupMultiStepLR"))
    warmup = [0.005 + (5.0 - 0.005) * step / 5 for step in range(5)]
    assert found == pytest.approx([*warmup, *[5.0] * 5, *[0.5] * 5, *[0.05] * 5, *[0.005] * 10])


def test_steps_beyond_the_end_are_ignored() -> None:
    cfg = schedule_config("WarmupMultiStepLR")
    cfg.SOLVER.STEPS = (10, 99)
    assert rates(cfg)[-1] == pytest.approx(0.5)


def test_no_warm_up() -> None:
    cfg = schedule_config("WarmupMultiStepLR")
    cfg.SOLVER.WARMUP_ITERS = 0
    assert rates(cfg)[0] == 5.0


def test_constant_warm_up() -> None:
    cfg = schedule_config("WarmupMultiStepLR")
    cfg.SOLVER.WARMUP_METHOD = "constant"
    assert rates(cfg)[:6] == pytest.approx([0.005] * 5 + [5.0])


def test_cosine_with_warm_up() -> None:
    cfg = schedule_config("WarmupCosineLR")
    cfg.SOLVER.BASE_LR_END = 1.0
    found = rates(cfg)
    for step in range(5, 30):
        assert found[step] == pytest.approx(1.0 + 4.0 * (1 + math.cos(math.pi * step / 30)) / 2)
    assert found[0] == pytest.approx(0.005)
    assert found[4] < found[5]


def test_fixed_gamma_steps() -> None:
    cfg = schedule_config("WarmupStepWithFixedGammaLR")
    cfg.SOLVER.NUM_DECAYS = 2
    found = rates(cfg)
    assert (found[9], found[15], found[29]) == pytest.approx((5.0, 0.5, 0.05))


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="NoSuchLR"):
        rates(schedule_config("NoSuchLR"))


def test_warm_up_with_rescaled_interval() -> None:
    cosine = CosineParamScheduler(1.0, 0.0)
    schedule = WarmupParamScheduler(cosine, 0.1, 0.2, rescale_interval=True)
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(cosine(0.5))


def test_schedule_resumes() -> None:
    multiplier = MultiStepParamScheduler([1.0, 0.1], milestones=[3], num_updates=6)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LRMultiplier(optimizer, multiplier, 6)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    resumed = LRMultiplier(other, multiplier, 6)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.last_epoch == 4
    assert resumed.get_lr() == pytest.approx([0.2])
