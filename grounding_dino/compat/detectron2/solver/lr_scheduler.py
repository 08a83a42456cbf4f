"""Learning-rate schedules: a function of progress times the initial rate."""

from __future__ import annotations

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """Puts a warm-up before the schedule `scheduler`."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """`warmup_factor`: the start, relative to the schedule's first value; `warmup_length`: share of the whole
        training, in [0, 1]; `warmup_method`: "linear" up to the schedule's value at the end of the warm-up, or
        "constant"; `rescale_interval`: the whole schedule follows the warm-up, instead of what is left of it."""
        end = scheduler(0.0) if rescale_interval else scheduler(warmup_length)
        start = warmup_factor * scheduler(0.0)
        warmup: ParamScheduler
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"unknown warm-up method {warmup_method!r}; choose 'linear' or 'constant'")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies every parameter group's initial rate by ``multiplier(iteration / max_iter)``."""

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1) -> None:
        """`last_iter`: the iteration done last when a training is continued, -1 at its start."""
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"LRMultiplier takes a fvcore ParamScheduler, got {type(multiplier).__name__}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, object]:
        """Only what changes: the schedule comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
