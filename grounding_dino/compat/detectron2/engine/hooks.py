"""The hooks: timing, learning rate, checkpoints, evaluation, writing of metrics."""

from __future__ import annotations

import datetime
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .train_loop import HookBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]

logger = logging.getLogger(__name__)

Callback = Callable[[Any], Any]


class CallbackHook(HookBase):
    """Calls the given functions, each with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ) -> None:
        self._before_train, self._after_train = before_train, after_train
        self._before_step, self._after_step = before_step, after_step

    def before_train(self) -> None:
        """Call the function given for it."""
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        """Call the function given for it, and drop all: they may keep large things alive."""
        if self._after_train:
            self._after_train(self.trainer)
        self._before_train = self._after_train = self._before_step = self._after_step = None

    def before_step(self) -> None:
        """Call the function given for it."""
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        """Call the function given for it."""
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Records the seconds of each iteration as "time", and logs a summary in the end.

    The first iterations are slower and are left out. The time between after_step and the next before_step, in which
    the other hooks run, counts as the hooks' time in the summary.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        """Start."""
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        """Log the speed and how much of the time went into hooks."""
        total_seconds = time.perf_counter() - self._start_time
        step_seconds = self._total_timer.seconds()
        iterations = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if iterations > 0 and step_seconds > 0:
            logger.info(
                "%d iterations in %s (%.4f s/iter)",
                iterations,
                datetime.timedelta(seconds=int(step_seconds)),
                step_seconds / iterations,
            )
        logger.info(
            "total training time %s, of which %s in hooks",
            datetime.timedelta(seconds=int(total_seconds)),
            datetime.timedelta(seconds=int(max(0.0, total_seconds - step_seconds))),
        )

    def before_step(self) -> None:
        """Start the iteration's watch."""
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        """Record the iteration, once warmed up."""
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


class PeriodicWriter(HookBase):
    """Lets the writers write every `period` iterations and after the last; has to come after what puts the metrics."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"a writer is an EventWriter, but got a {type(writer).__name__}.")
        self._writers = list(writers)
        self._period = period

    def after_step(self) -> None:
        """Write, where it is time."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._write()

    def after_train(self) -> None:
        """Write what came last, such as the evaluation after training, and close the writers."""
        for writer in self._writers:
            writer.write()
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's, as a hook: saves every `period` iterations, and after the last as "model_final"."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        max_iter: int | None = None,
        max_to_keep: int | None = None,
        file_prefix: str = "model",
    ) -> None:
        """
        Args:
            max_to_keep: remove older ones than so many, but not the final one.
        """
        super().__init__(checkpointer, period, max_iter, max_to_keep, file_prefix)

    def before_train(self) -> None:
        """Take over where the training ends."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save, where it is time."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves whenever a metric in the event storage is better than ever before; comes after `EvalHook`."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: look every so many iterations, as `EvalHook` evaluates; and after the last.
            val_metric: its name in the storage, such as "bbox/AP".
            mode: "max" or "min" is better.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"unknown mode {mode!r}; choose 'max' or 'min'.")
        self._period = eval_period
        self._val_metric = val_metric
        self._compare = operator.gt if mode == "max" else operator.lt
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _save_if_better(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning(
                "the event storage has no %r, so there is no best checkpoint to save: does an EvalHook that gives it "
                "come before?",
                self._val_metric,
            )
            return
        value, iteration = latest
        if not math.isfinite(value):
            return
        if self.best_metric is not None and not self._compare(value, self.best_metric):
            logger.info(
                "%s is %.5f; the best is %.5f, of iteration %s",
                self._val_metric,
                value,
                self.best_metric,
                self.best_iter,
            )
            return
        logger.info("%s is %.5f in iteration %d, the best so far: saved", self._val_metric, value, iteration)
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)

    def after_step(self) -> None:
        """Look, where there was an evaluation; the last one comes after training."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._save_if_better()

    def after_train(self) -> None:
        """Look at the last evaluation, where the training went through."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._save_if_better()


class LRScheduler(HookBase):
    """Records the learning rate as "lr" and steps the scheduler in each iteration."""

    def __init__(self, optimizer: torch.optim.Optimizer | None = None, scheduler: Any = None) -> None:
        """
        Args:
            optimizer: the trainer's where None.
            scheduler: a PyTorch scheduler, or a fvcore `ParamScheduler` that multiplies the initial rates; the
                trainer's where None.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._best_param_group_id = 0

    def before_train(self) -> None:
        """Find the optimizer and the scheduler, and choose whose learning rate to record."""
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: Any) -> int:
        """The group whose learning rate is best shown: the largest, or of many small ones that with the usual rate."""
        largest = max(len(group["params"]) for group in optimizer.param_groups)
        if largest == 1:  # one group a parameter: the rate that most of them have
            usual = Counter(group["lr"] for group in optimizer.param_groups).most_common(1)[0][0]
            return next(i for i, group in enumerate(optimizer.param_groups) if group["lr"] == usual)
        return next(i for i, group in enumerate(optimizer.param_groups) if len(group["params"]) == largest)

    @property
    def scheduler(self) -> Any:
        """The scheduler in use."""
        return self._scheduler or self.trainer.scheduler

    def after_step(self) -> None:
        """Record the rate that this iteration had, then step."""
        assert self._optimizer is not None  # set in before_train
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's."""
        scheduler = self.scheduler
        return scheduler.state_dict() if isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The scheduler's."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            logger.info("loading the learning-rate schedule's state")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every `eval_period` iterations (0: never in between) and after the last; results go to the storage."""

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True) -> None:
        """
        Args:
            eval_function: returns nested dicts of numbers, or nothing; called on all processes.
            eval_after_train: evaluate after the last iteration too, where the training went through.
        """
        self._period = eval_period
        self._func: Callable[[], Any] | None = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        assert self._func is not None  # dropped only after training
        results = self._func()
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"an evaluation function returns a dict, but this one returned {results!r}.")
            flat = flatten_results_dict(results)
            for name, value in flat.items():
                try:
                    flat[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"an evaluation function returns numbers, but {name!r} is {value!r}.") from error
            self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
        # Evaluation may take different time on different processes, more than what they wait for each other.
        comm.synchronize()

    def after_step(self) -> None:
        """Evaluate, where it is time; the last time is left to after_train."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate the finished model, unless the training failed."""
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function likely holds the trainer: dropped, so that both can be freed.
        self._func = None
