"""One training step: forward, finite check, backward, clipping, optimizer; in fp32 or mixed precision."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite; the message names the tensors and the pictures."""


class TrainStep(SimpleTrainer):
    """Detectron2's step plus what it leaves open: finite checks by name, full-model clipping, bf16 and fp16."""

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer, cfg: CfgNode) -> None:
        super().__init__(model, data_loader, optimizer)
        self.clip_norm = _full_model_clip(cfg)
        self.autocast_dtype = _autocast_dtype(cfg)
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        # bf16 has fp32's range and needs no loss scaling
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=self.autocast_dtype == torch.float16 and self.device_type == "cuda"
        )

    def run_step(self) -> None:
        """Train on the next batch."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with self._autocast():
            losses = self.model(batch)
        check_losses(losses, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.write_metrics(losses, data_time, self.iter)
        self._step(batch)

    def _step(self, batch: list[dict[str, Any]]) -> None:
        self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        # with loss scaling an overflow is expected now and then: the scaler leaves such a step out
        if not self.grad_scaler.is_enabled():
            check_gradients(norm, self.model, batch)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, self.autocast_dtype)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict.get("grad_scaler", {}) or self.grad_scaler.state_dict())


def _full_model_clip(cfg: CfgNode) -> float:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return float("inf")
    if clip.CLIP_TYPE != "full_model":
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; this trainer clips by 'full_model' norm")
    return float(clip.CLIP_VALUE)


def _autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in DTYPES:
        raise ValueError(f"unknown SOLVER.AMP.DTYPE {name!r}; choose from {sorted(DTYPES)}")
    return DTYPES[name]


def check_losses(losses: dict[str, Tensor], batch: list[dict[str, Any]]) -> None:
    """Raise :class:`NonFiniteError` naming the losses that are not finite."""
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    if torch.isfinite(values).all():
        return
    bad = [f"{name} = {value}" for name, value in zip(losses, values.tolist()) if not torch.isfinite(torch.tensor(value))]
    raise NonFiniteError(f"{', '.join(bad)} on {_pictures(batch)}; {_REMEDY}")


def check_gradients(norm: Tensor, model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Raise :class:`NonFiniteError` naming the parameters whose gradient is not finite, before any weight changes."""
    if torch.isfinite(norm):
        return
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    raise NonFiniteError(f"the gradient of {shown or 'all parameters together'} is not finite on {_pictures(batch)}; {_REMEDY}")


_REMEDY = "no weight was changed by this step and the last checkpoint is good: lower SOLVER.BASE_LR or look at these pictures"


def _pictures(batch: list[dict[str, Any]]) -> str:
    return "pictures " + ", ".join(str(b.get("image_id", b.get("file_name", "?"))) for b in batch)
