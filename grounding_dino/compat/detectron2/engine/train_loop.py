"""The training loop, what hangs on it, and the step of a single-optimizer training."""

from __future__ import annotations

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

logger = logging.getLogger(__name__)

_PARALLEL_MODELS = (DataParallel, DistributedDataParallel)


class HookBase:
    """Something to do at set points of a training. All methods may be left as they are.

    `trainer` is set, to a weak reference of the trainer, when the hook is registered. The order:
    before_train, then for each iteration before_step, the step with after_backward in it, after_step; then after_train.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, and also where one failed."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called after the gradients are there, before the optimizer uses them."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What to save with the trainer; a hook that has something also defines `load_state_dict`."""
        return {}


class TrainerBase:
    """The loop over iterations; a subclass defines `run_step`.

    Attributes:
        iter: the current iteration, from 0; after a training that went through, `max_iter`.
        start_iter, max_iter: where the training starts and ends.
        storage: the `EventStorage` of the training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int = 0
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Add hooks, to be called in this order; None is left out."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook is a HookBase, but got a {type(hook).__name__}.")
            # Weak, since the trainer owns its hooks: with a cycle, neither would be freed at once.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from `start_iter` up to, not including, `max_iter`."""
        logger.info("starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Only a training that went through gets here: after_train tells by it.
                self.iter += 1
            except Exception:
                logger.exception("training stopped in iteration %d", self.iter)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Call the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run_step.")

    def state_dict(self) -> dict[str, Any]:
        """The iteration, and the states of the hooks that have one."""
        state: dict[str, Any] = {"iteration": self.iter}
        hooks_state: dict[str, Any] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            name = type(hook).__qualname__
            if hook_state and name in hooks_state:
                logger.warning("two hooks are of the type %s: only the state of the first is saved", name)
            elif hook_state:
                hooks_state[name] = hook_state
        if hooks_state:
            state["hooks"] = hooks_state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; hook states that no hook here claims are left out with a warning."""
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            for hook in self._hooks:
                if type(hook).__qualname__ == name:
                    hook.load_state_dict(hook_state)  # type: ignore[attr-defined]
                    break
            else:
                logger.warning("the checkpoint has the state of a hook %s, which this training does not have", name)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one loader: the model returns a dict of losses, whose sum is stepped down."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model: takes a batch and returns a dict of losses (or one loss); it is put into training mode.
            data_loader: an endless iterable of batches.
            gather_metric_period: gather the losses of all processes every so many iterations.
            zero_grad_before_forward: drop the gradients before the forward pass and not after it.
            async_write_metrics: gather and record in a thread beside the training.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator[Any] | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1) if async_write_metrics else None

    def _require_training_mode(self) -> None:
        if not self.model.training:
            raise RuntimeError("the model is in eval mode in the middle of a training: a hook has to put it back.")

    def _next_batch(self) -> tuple[Any, float]:
        """The next batch, and how long it took to come, in seconds."""
        start = time.perf_counter()
        return next(self._data_loader_iter), time.perf_counter() - start

    def run_step(self) -> None:
        """Forward, backward, step; the losses go to the event storage."""
        self._require_training_mode()
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = _sum_losses(self.model(data))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._record_metrics(loss_dict, data_time)
        # Losses are recorded, and so checked for being finite, before the weights are changed by them.
        self.optimizer.step()

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Any]) -> None:
        """Go on with a new loader, built after the old one is gone, for the sake of its workers' memory."""
        del self.data_loader
        self.data_loader = data_loader_builder()
        self._data_loader_iter_obj = None

    def _record_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "") -> None:
        if (self.iter + 1) % self.gather_metric_period != 0:
            return
        if self.concurrent_executor is None:
            SimpleTrainer.write_metrics(loss_dict, data_time, self.iter, prefix)
            return
        detached = {name: value.detach() for name, value in loss_dict.items()}
        self.concurrent_executor.submit(_write_metrics_and_log, detached, data_time, self.iter, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Record the mean losses of all processes, their sum as "total_loss", and the longest wait for data.

        Raises:
            FloatingPointError: the sum is not finite.
        """
        metrics = {name: value.detach().cpu().item() for name, value in loss_dict.items()}
        gathered = comm.gather({**metrics, "data_time": data_time})
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        # The slowest process is the one that all others wait for.
        storage.put_scalar("data_time", float(np.max([part.pop("data_time") for part in gathered])), cur_iter=cur_iter)
        means = {name: float(np.mean([part[name] for part in gathered])) for name in gathered[0]}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"the loss became infinite or NaN in iteration {cur_iter}: {means}.")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            for name, value in means.items():
                storage.put_scalar(name, value, cur_iter=cur_iter)

    def after_train(self) -> None:
        """Call the hooks, once all metrics are recorded."""
        if self.concurrent_executor is not None:
            self.concurrent_executor.shutdown(wait=True)
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """With the optimizer's."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """With the optimizer's."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


def _sum_losses(output: Any) -> tuple[Mapping[str, torch.Tensor], Any]:
    if isinstance(output, torch.Tensor):
        return {"total_loss": output}, output
    return output, sum(output.values())


def _write_metrics_and_log(*args: Any) -> None:
    try:
        SimpleTrainer.write_metrics(*args)
    except Exception:  # nobody looks at the thread's result
        logger.exception("recording the metrics failed")
        raise


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` with automatic mixed precision and, for float16, scaled gradients."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: Any = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            grad_scaler: a `torch.amp.GradScaler`; made for the model's device where None.
            precision: what to compute in.
            log_grad_scaler: record the scale.
            The others: see `SimpleTrainer`.

        Raises:
            ValueError: the model is spread over several devices in one process.
        """
        device_ids: Any = getattr(model, "device_ids", None) if isinstance(model, _PARALLEL_MODELS) else None
        if device_ids is not None and len(device_ids) > 1:
            raise ValueError("AMPTrainer needs one device a process: use DistributedDataParallel with one device.")
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device_type) if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """Forward in mixed precision, backward on the scaled loss, step unless gradients overflowed."""
        self._require_training_mode()
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast(self._device_type, dtype=self.precision):
            loss_dict, losses = _sum_losses(self.model(data))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._record_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """With the gradient scaler's."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """With the gradient scaler's."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
