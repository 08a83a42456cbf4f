"""One training step: forward, backward, finite checks, clipping, optimizer; in fp32 or mixed precision."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

from grounding_dino.checkpoint.sharded import whole_scalar
from grounding_dino.engine.clipping import build_clipping
from grounding_dino.engine.finite_checks import NonFiniteError, check_gradients, check_losses, while_computing

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

__all__ = ["DTYPES", "NonFiniteError", "TrainStep"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainStep(SimpleTrainer):
    """Detectron2's step plus what it leaves open: finite checks by name, full-model clipping, bf16 and fp16.

    Nothing is read back from the device before the backward pass is under way, and then in one transfer.
    """

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError: SOLVER.AMP or SOLVER.CLIP_GRADIENTS asks for something unknown.
        """
        super().__init__(model, data_loader, optimizer)
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        self.clip = build_clipping(cfg)
        # The total norm is of the type that clipping asks for; the finite check takes any.
        self.norm_type = float(cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE)
        self.autocast_dtype = _autocast_dtype(cfg, self.device_type)
        # bf16 has fp32's range and needs no loss scaling
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=self.autocast_dtype == torch.float16)

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            NonFiniteError: a loss or gradient is not finite; no weight has changed then.
        """
        if not self.model.training:
            raise RuntimeError("the model is in eval mode in the middle of a training: a hook has to put it back")
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        losses = self._losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = whole_scalar(nn.utils.get_total_norm(gradients, self.norm_type))
        self._check_and_record(losses, norm, batch, data_time)
        if self.clip is not None:
            self.clip(parameters, norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        with self._autocast():
            try:
                losses = self.model(batch)
            except FloatingPointError as error:  # such as matching costs that are NaN
                raise while_computing(error, batch) from error
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _check_and_record(
        self, losses: dict[str, Tensor], norm: Tensor, batch: list[dict[str, Any]], data_time: float
    ) -> None:
        values = torch.stack([*(loss.detach().float() for loss in losses.values()), norm.float()]).cpu()
        numbers = dict(zip(losses, values[:-1]))
        check_losses({name: float(value) for name, value in numbers.items()}, batch)
        # with loss scaling an overflow is expected now and then: the scaler leaves such a step out
        if not self.grad_scaler.is_enabled():
            check_gradients(float(values[-1]), self.model, batch)
        SimpleTrainer.write_metrics(numbers, data_time, self.iter)
        if torch.isfinite(values[-1]):
            get_event_storage().put_scalar("grad_norm", float(values[-1]))

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, self.autocast_dtype)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # A run may go on in another precision, whose scaler has no state or begins anew.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _autocast_dtype(cfg: CfgNode, device_type: str) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in DTYPES:
        raise ValueError(f"unknown SOLVER.AMP.DTYPE {name!r}; choose from {sorted(DTYPES)}")
    if name == "float16" and device_type != "cuda":
        raise ValueError(f"SOLVER.AMP.DTYPE 'float16' needs a GPU, but MODEL.DEVICE is {device_type!r}; use 'bfloat16'")
    return DTYPES[name]
