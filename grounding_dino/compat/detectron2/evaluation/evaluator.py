"""The evaluation loop, and what an evaluator has to provide."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds

logger = logging.getLogger(__name__)

MAX_WARMUP_BATCHES = 5  # left out of the timing
SECONDS_BETWEEN_LOGS = 5


class DatasetEvaluator:
    """Takes in the inputs and outputs of a model, batch by batch, and sums them up in the end."""

    def reset(self) -> None:
        """Forget what was taken in; called before a new round."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in a batch: the list of dicts that went into the model, and the list that came out."""

    def evaluate(self) -> Any:
        """Sum up, after all batches.

        Returns:
            task -> metric -> value, in an order to be kept; None or nothing on processes other than the first.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators over one round of inference."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        """Reset all."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Hand the batch to all."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        """The results of all in one dict.

        Raises:
            ValueError: two evaluators name a task the same.
        """
        results: OrderedDict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if not is_main_process() or result is None:
                continue
            for task, metrics in result.items():
                if task in results:
                    raise ValueError(f"two evaluators report results under {task!r}: evaluate them apart.")
                results[task] = metrics
        return results


class _Stopwatch:
    """Times the parts of the loop; the first batches, in which caches and kernels warm up, do not count."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.warmup = min(MAX_WARMUP_BATCHES, total - 1)
        self.begin = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter()
        self.data = self.compute = self.evaluation = 0.0

    def log(self, done: int) -> None:
        """Log the pace and the time left, every few seconds, once warmed up."""
        counted = done - self.warmup
        if counted <= 0:
            return
        pace = (time.perf_counter() - self.start) / counted
        left = datetime.timedelta(seconds=int(pace * (self.total - done)))
        log_every_n_seconds(
            logging.INFO,
            f"inference done {done}/{self.total}. data {self.data / counted:.4f} s/iter, "
            f"inference {self.compute / counted:.4f} s/iter, evaluation {self.evaluation / counted:.4f} s/iter, "
            f"total {pace:.4f} s/iter, ETA {left}",
            n=SECONDS_BETWEEN_LOGS,
            name=__name__,
        )

    def log_total(self) -> None:
        counted = max(self.total - self.warmup, 1)
        seconds = time.perf_counter() - self.start
        logger.info(
            "inference took %s (%.6f s/iter per device, on %d devices), of which the model %.6f s/iter",
            datetime.timedelta(seconds=int(seconds)),
            seconds / counted,
            get_world_size(),
            self.compute / counted,
        )


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def inference_on_dataset(
    model: Any,
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Any] | None = None,
) -> Any:
    """Run a model over a loader without gradients and evaluate what it says.

    Args:
        model: a module (put into eval mode for the time) or any function from a batch to its outputs.
        data_loader: has a length and gives batches.
        evaluator: one, several, or None to only run the model.
        callbacks: functions without arguments under "on_start", "on_end", "before_inference", "after_inference".

    Returns:
        what `evaluator.evaluate()` returns; an empty dict in place of None.
    """
    total = len(data_loader)  # type: ignore[arg-type]
    logger.info("starting inference on %d batches", total)
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, (list, tuple)):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        _inference_loop(model, data_loader, evaluator, callbacks or {}, _Stopwatch(total))
    results = evaluator.evaluate()
    return {} if results is None else results


def _inference_loop(
    model: Any,
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator,
    callbacks: Mapping[str, Any],
    watch: _Stopwatch,
) -> None:
    def call(name: str) -> None:
        callbacks.get(name, lambda: None)()

    call("on_start")
    data_start = time.perf_counter()
    for index, inputs in enumerate(data_loader):
        if index == watch.warmup:
            watch.restart()
            data_start = watch.start
        compute_start = time.perf_counter()
        watch.data += compute_start - data_start
        call("before_inference")
        outputs = model(inputs)
        call("after_inference")
        _wait_for_device()
        evaluation_start = time.perf_counter()
        watch.compute += evaluation_start - compute_start
        evaluator.process(inputs, outputs)
        data_start = time.perf_counter()
        watch.evaluation += data_start - evaluation_start
        watch.log(index + 1)
    call("on_end")
    watch.log_total()


@contextlib.contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and afterwards back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
