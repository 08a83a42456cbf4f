"""Exponential moving average of the weights (SOLVER.EMA), evaluated and saved beside the trained ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from grounding_dino.checkpoint.sharded import own_part, split_like

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

logger = logging.getLogger(__name__)


def build_average(cfg: CfgNode, model: nn.Module) -> WeightAverage | None:
    """What SOLVER.EMA asks for; None where it is off.

    Raises:
        ValueError: a decay outside of [0, 1).
    """
    return WeightAverage(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED_ON else None


class WeightAverage:
    """The average of a model's trained parameters: after each step, average = d x average + (1 - d) x weights.

    The decay d grows with the number t of steps, min(decay, (1 + t) / (10 + t)), so that the first weights are soon
    forgotten: with 0.9998 the full decay is reached after 45000 steps, and over t steps before the average reaches back
    about t / 9 of them. Frozen parameters and buffers (the statistics of norms) are the model's own, so only what is
    trained is kept twice. To compute with the average, it changes places with the model's weights (:meth:`applied`);
    there is no second model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Raises:
            ValueError: `decay` is outside of [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"SOLVER.EMA.DECAY is {decay}; give a number from 0 to below 1, such as 0.9998")
        self.model = model
        self.decay = decay
        self.steps = 0
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._trained.items()}

    def restart(self) -> None:
        """Begin anew with the weights that the model has now."""
        self.steps = 0
        for name, parameter in self._trained.items():
            self._average[name].copy_(parameter.detach())

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights in; to be called after each step of the optimizer."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages = tuple(own_part(average) for average in self._average.values())
        weights = tuple(own_part(parameter.detach()) for parameter in self._trained.values())
        get_ema_multi_avg_fn(decay)(averages, weights, self.steps)
        self.steps += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the averaged weights; afterwards its own again, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            own = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """`steps` and `parameters` to go on with, and `weights`: entries to put over the model's own state to use them.

        Both hold the same tensors, but for entries that the state dict computes (:mod:`grounding_dino.engine.lora`).
        """
        names = {id(parameter): name for name, parameter in self._trained.items()}
        with self.applied():
            state = self.model.state_dict()
            own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
            weights = {name: tensor.clone() for name, tensor in state.items() if name not in own}
        shared = {name: names[id(p)] for name, p in own.items() if id(p) in names and name in state}
        weights |= {name: self._average[trained] for name, trained in shared.items()}
        return {"steps": self.steps, "parameters": dict(self._average), "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: it is the average of other parameters.
        """
        parameters: dict[str, Tensor] = state["parameters"]
        if parameters.keys() != self._average.keys():
            odd = sorted(parameters.keys() ^ self._average.keys())
            raise ValueError(
                f"the checkpoint's average (SOLVER.EMA) is of other parameters than this run trains: {odd[:5]} are in "
                "one only; keep SOLVER.FREEZE and MODEL.LORA as they were, or start a new run from the weights"
            )
        for name, tensor in parameters.items():
            self._average[name].copy_(split_like(tensor, self._average[name]))
        self.steps = int(state["steps"])


class AverageWeights(HookBase):
    """Updates the average after each step; to be registered before the hooks that save and evaluate."""

    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        """Take this step's weights in."""
        self._average.update()
