"""One training step: forward and backward in one or more passes, finite checks, clipping, optimizer; any precision."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from grounding_dino.checkpoint.sharded import whole_scalar
from grounding_dino.engine.clipping import build_clipping
from grounding_dino.engine.finite_checks import NonFiniteError, check_gradients, check_losses, while_computing
from grounding_dino.engine.optimizer import check_state

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["DTYPES", "NonFiniteError", "TrainStep"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Batch = list[dict[str, Any]]


class TrainStep(SimpleTrainer):
    """Detectron2's step plus what it leaves open: accumulation, finite checks by name, full-model clipping, bf16, fp16.

    Nothing is read back from the device before the last backward pass is under way, and then in one transfer.

    With SOLVER.ACCUMULATION_STEPS a batch goes through the model in that many parts, and the optimizer makes one step.
    The model divides its losses by the targets that it sees; here they are weighted to be divided by those of the whole
    batch, so the gradients are those of one pass, but for what depends on a batch's composition: padding, batch norms,
    and the numbers of denoising groups and slots, which follow from the largest target count of a part (a target
    weighs the same, however many groups it is in).
    """

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError: SOLVER.AMP or SOLVER.CLIP_GRADIENTS asks for something unknown, or SOLVER.ACCUMULATION_STEPS
                does not divide the batch.
        """
        super().__init__(model, data_loader, optimizer)
        self.passes = _passes(cfg)
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
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch)
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = whole_scalar(nn.utils.get_total_norm(gradients, self.norm_type))
        values, norm_value = self._checked(losses, norm, batch)
        if self.clip is not None:
            self.clip(parameters, norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        # recorded, and gathered from other processes, while the device still computes
        SimpleTrainer.write_metrics(values, data_time, self.iter)
        if math.isfinite(norm_value):
            get_event_storage().put_scalar("grad_norm", norm_value)

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of a batch up, part by part; its losses, detached."""
        parts = _split(batch, self.passes)
        total: dict[str, Tensor] = {}
        for index, (part, share) in enumerate(zip(parts, _shares(parts))):
            waits = index < len(parts) - 1
            with unsynchronised(self.model) if waits else contextlib.nullcontext():
                losses = self.losses_of(part)
                self.grad_scaler.scale(torch.stack(list(losses.values())).sum() * share).backward()
            for name, loss in losses.items():
                value = loss.detach() * share
                total[name] = total[name] + value if name in total else value
        return total

    def losses_of(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch by name, in the precision of SOLVER.AMP."""
        with self._autocast():
            try:
                losses = self.model(batch)
            except FloatingPointError as error:  # such as matching costs that are NaN
                raise while_computing(error, batch) from error
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _checked(self, losses: dict[str, Tensor], norm: Tensor, batch: Batch) -> tuple[dict[str, Tensor], float]:
        """The losses on the host and the gradient's norm, seen to be finite."""
        values = torch.stack([*(loss.float() for loss in losses.values()), norm.float()]).cpu()
        numbers, norm_value = dict(zip(losses, values[:-1])), float(values[-1])
        check_losses({name: float(value) for name, value in numbers.items()}, batch)
        # with loss scaling an overflow is expected now and then: the scaler leaves such a step out
        if not self.grad_scaler.is_enabled():
            check_gradients(norm_value, self.model, batch)
        return numbers, norm_value

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, self.autocast_dtype)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: it is of another optimizer, or of other trained parameters.
        """
        check_state(self.optimizer, state_dict["optimizer"])
        super().load_state_dict(state_dict)
        # A run may go on in another precision, whose scaler has no state or begins anew.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


@contextlib.contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Within it, backward passes add gradients up in each process alone; the next one after it exchanges the sums."""
    sharded: Any = model
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):  # torch's fully_shard
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)
    else:
        yield


def _passes(cfg: CfgNode) -> int:
    passes, world = cfg.SOLVER.ACCUMULATION_STEPS, comm.get_world_size()
    per_process = cfg.SOLVER.IMS_PER_BATCH // world
    if passes < 1 or per_process % passes:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {passes}, but a process has {per_process} pictures a step "
            f"(SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, {world} processes); it has to divide them"
        )
    return passes


def _split(batch: Batch, passes: int) -> list[Batch]:
    size = max(1, len(batch) // passes)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _shares(parts: Sequence[Batch]) -> list[float]:
    """The factor of each part's losses: its divisor in the criterion over the whole step's.

    Divisors are counts of the targets in all processes, at least 1.
    """
    if len(parts) == 1:
        return [1.0]
    own = [sum(len(inputs["instances"]) for inputs in part) for part in parts]
    counts = [sum(column) for column in zip(*comm.all_gather(own))]
    whole = max(1, sum(counts))
    return [max(1, count) / whole for count in counts]


def _autocast_dtype(cfg: CfgNode, device_type: str) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in DTYPES:
        raise ValueError(f"unknown SOLVER.AMP.DTYPE {name!r}; choose from {sorted(DTYPES)}")
    if name == "float16" and device_type != "cuda":
        raise ValueError(f"SOLVER.AMP.DTYPE 'float16' needs a GPU, but MODEL.DEVICE is {device_type!r}; use 'bfloat16'")
    return DTYPES[name]
