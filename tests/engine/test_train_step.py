"""A training step: what it refuses to learn from, how it clips, and its precisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grounding_dino.engine.train_step import NonFiniteError
from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

ConfigBuilder = Callable[..., CfgNode]


class At(HookBase):
    """Calls a function with the trainer before one iteration."""

    def __init__(self, iteration: int, function: Callable[[Any], Any]) -> None:
        self.iteration, self.function = iteration, function

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.function(self.trainer)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_unchanged(before: dict[str, torch.Tensor], trainer: Trainer) -> None:
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


def spoil_loss(trainer: Any) -> None:
    criterion = trainer.model.criterion
    whole = criterion.forward

    def forward(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        losses = whole(*args, **kwargs)
        return {**losses, "loss_giou": losses["loss_giou"] * float("nan")}

    criterion.forward = forward


def test_a_loss_that_is_no_number_stops_by_name_and_keeps_the_last_checkpoint(train_cfg: ConfigBuilder) -> None:
    cfg = train_cfg("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 6)
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    before: dict[str, torch.Tensor] = {}
    trainer.register_hooks([At(3, spoil_loss), At(3, lambda t: before.update(weights_of(t)))])
    with pytest.raises(NonFiniteError, match=r"^loss_giou = nan on pictures \d00 \(.*png\), \d00 .*SOLVER.BASE_LR"):
        trainer.train()
    assert_unchanged(before, trainer)
    again = Trainer(cfg)
    again.resume_or_load(True)
    assert again.start_iter == 2
    again.train()
    assert again.iter == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_a_weight_changes(train_cfg: ConfigBuilder, value: float) -> None:
    trainer = Trainer(train_cfg())
    before: dict[str, torch.Tensor] = {}

    def spoil(t: Any) -> None:
        before.update(weights_of(t))
        t.model.pixel_decoder.level_embed.register_hook(lambda gradient: gradient * value)

    trainer.register_hooks([At(2, spoil)])
    with pytest.raises(
        NonFiniteError, match=r"^the gradient of pixel_decoder.level_embed is not finite on pictures \d"
    ):
        trainer.train()
    assert_unchanged(before, trainer)


def test_weights_that_are_no_numbers_are_reported_with_the_pictures(train_cfg: ConfigBuilder) -> None:
    trainer = Trainer(train_cfg())
    with torch.no_grad():
        trainer.model.transformer_decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"not finite.*pictures \d00"):
        trainer.train()


def steps_of_one_iteration(cfg: CfgNode) -> tuple[torch.Tensor, float]:
    """How far plain SGD with rate 1 moves all weights together in one iteration, and the gradient's norm."""
    trainer = Trainer(cfg)
    before = weights_of(trainer)
    trainer.train()
    moved = [trainer.model.state_dict()[name] - before[name] for name, _ in trainer.model.named_parameters()]
    return torch.cat([m.flatten() for m in moved]), trainer.storage.latest()["grad_norm"][0]


SGD = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 1.0, "SOLVER.WARMUP_ITERS", 0)
ONE_STEP = (*SGD, "SOLVER.PARAMETER_GROUPS", [], "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0)
ONE_STEP = (*ONE_STEP, "SOLVER.MAX_ITER", 1)
CLIP = "SOLVER.CLIP_GRADIENTS"


def test_clipping_bounds_the_whole_gradient(train_cfg: ConfigBuilder) -> None:
    free, norm = steps_of_one_iteration(train_cfg(*ONE_STEP, f"{CLIP}.ENABLED", False))
    assert norm > 0.5
    assert float(free.norm()) == pytest.approx(norm, rel=1e-3)
    whole, same_norm = steps_of_one_iteration(train_cfg(*ONE_STEP, f"{CLIP}.CLIP_VALUE", 0.01))
    assert same_norm == norm
    assert float(whole.norm()) == pytest.approx(0.01, rel=1e-2)
    torch.testing.assert_close(whole / 0.01, free / norm, atol=2e-3, rtol=0)
    wide, _ = steps_of_one_iteration(train_cfg(*ONE_STEP, f"{CLIP}.CLIP_VALUE", 1e9))
    torch.testing.assert_close(wide, free)


def test_clipping_by_value_and_by_parameter(train_cfg: ConfigBuilder) -> None:
    bounded, _ = steps_of_one_iteration(train_cfg(*ONE_STEP, f"{CLIP}.CLIP_TYPE", "value", f"{CLIP}.CLIP_VALUE", 1e-3))
    assert float(bounded.abs().max()) == pytest.approx(1e-3, rel=1e-2)
    each, norm = steps_of_one_iteration(train_cfg(*ONE_STEP, f"{CLIP}.CLIP_TYPE", "norm", f"{CLIP}.CLIP_VALUE", 1e-3))
    assert 1e-3 < float(each.norm()) < 0.1 * norm


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ((f"{CLIP}.CLIP_TYPE", "total"), "unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE 'total'; choose from"),
        ((f"{CLIP}.CLIP_VALUE", 0.0), "CLIP_VALUE is 0.0; give a positive number"),
        (("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "half"), "unknown SOLVER.AMP.DTYPE 'half'; choose from"),
        (("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"), "'float16' needs a GPU.*'bfloat16'"),
    ],
)
def test_unknown_options_are_refused(train_cfg: ConfigBuilder, opts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(train_cfg(*opts))


def test_bfloat16_on_the_cpu_trains(train_cfg: ConfigBuilder) -> None:
    trainer = Trainer(train_cfg("SOLVER.AMP.ENABLED", True, "TEST.PRECISION", "bfloat16"))
    before = weights_of(trainer)
    trainer.train()
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert torch.isfinite(torch.tensor(trainer.storage.latest()["total_loss"][0]))
    assert any(not torch.equal(before[n], t) for n, t in trainer.model.state_dict().items())


def test_with_loss_scaling_a_step_that_overflows_is_left_out(train_cfg: ConfigBuilder) -> None:
    trainer = Trainer(train_cfg("SOLVER.AMP.ENABLED", True))
    assert not trainer._trainer.grad_scaler.is_enabled(), "bfloat16 needs none"
    trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before: dict[str, torch.Tensor] = {}

    def overflow(t: Any) -> None:
        before.update(weights_of(t))
        level_embed = t.model.pixel_decoder.level_embed
        handles.append(level_embed.register_hook(lambda gradient: gradient * float("inf")))

    def look(t: Any) -> None:
        assert_unchanged(before, t)
        assert t._trainer.grad_scaler.get_scale() == 2.0
        handles.pop().remove()

    handles: list[Any] = []
    trainer.register_hooks([At(2, overflow), At(3, look)])
    trainer.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert trainer.state_dict()["_trainer"]["grad_scaler"]["scale"] == 2.0


def test_losses_fall(train_cfg: ConfigBuilder) -> None:
    trainer = Trainer(train_cfg("SOLVER.MAX_ITER", 15, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 2e-3))
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
