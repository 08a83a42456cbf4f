"""Hooks of our trainer: random numbers by iteration, norms' statistics, speed and memory, the best checkpoint."""

from __future__ import annotations

import datetime
import logging
import os
import random
import time
from typing import Any

from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.engine.ema import WeightAverage
from grounding_dino.engine.evaluations import EvaluationRecord
from grounding_dino.engine.lora import BEST_FOLDER, Adapters, save_adapters
from grounding_dino.engine.process_memory import peak_resident_bytes

import numpy as np
import torch
from detectron2.engine import hooks
from detectron2.engine.hooks import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

logger = logging.getLogger(__name__)

REPORT_PERIOD = 20  # iterations between two lines of the log, as Detectron2's writers
BEST = "model_best"


class SeedEveryStep(HookBase):
    """Makes the random numbers of a step a function of the seed, the iteration and the process.

    So nothing of the generators need be saved to continue a run bit for bit, and what evaluations or other hooks draw
    in between does not matter. Its trainer has a `seed`.
    """

    def before_step(self) -> None:
        """Seed python's, numpy's and torch's generators (of all devices)."""
        entropy = [self.trainer.seed, self.trainer.iter, comm.get_rank()]
        seeds = np.random.SeedSequence(entropy).generate_state(3)
        random.seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))
        torch.manual_seed(int(seeds[2]))


class FrozenNorms(HookBase):
    """Keeps the batch norms of frozen modules as they are: in eval mode, so that their statistics stay too.

    A batch norm counts as frozen with any module around it, itself included, that has parameters but none to train.
    """

    def before_train(self) -> None:
        """Find them; parameters are frozen before training."""
        self._norms = frozen_norms(self.trainer.model)

    def before_step(self) -> None:
        """Evaluations put the whole model back into training mode."""
        for norm in self._norms:
            norm.eval()


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms inside modules that have parameters, but none that is trained."""
    found: dict[nn.Module, None] = {}
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found.update((inner, None) for inner in module.modules() if isinstance(inner, _BatchNorm))
    return list(found)


class EqualStatistics(HookBase):
    """Gives all processes the batch-norm statistics of the first one, before checkpoints and evaluations.

    Each process gathers its own during training. Without this, the parts of a data set would be evaluated by different
    models, and a run that goes on from a checkpoint, which holds the first one's, would not equal an uninterrupted one.
    To be registered, in every process, before the hooks that save and evaluate.
    """

    def __init__(self, *periods: int) -> None:
        """`periods`: iterations between checkpoints, and between evaluations; 0 is never but at the end."""
        self._periods = [period for period in periods if period > 0]

    def after_step(self) -> None:
        """Copy where a checkpoint or an evaluation follows."""
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            share_statistics(self.trainer.model)


def share_statistics(model: nn.Module) -> None:
    """Overwrite the running statistics of all processes with those of the first; called in each of them."""
    if comm.get_world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _NormBase):
            for buffer in module.buffers(recurse=False):
                torch.distributed.broadcast(buffer, src=0)


class SpeedReport(HookBase):
    """Logs, and records for the writers, images per second, the share of time waiting for data, and peak memory.

    Only steps count, not checkpoints and evaluations between them. To be registered before `PeriodicWriter`.
    """

    def __init__(self, batch_size: int, period: int = REPORT_PERIOD) -> None:
        """`batch_size`: pictures an iteration, over all processes."""
        self._batch_size = batch_size
        self._period = period
        self._seconds = self._data_seconds = self._start = 0.0
        self._steps = 0

    def before_step(self) -> None:
        """Start the step's watch."""
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Add the step up, and report where it is time."""
        self._seconds += time.perf_counter() - self._start
        self._data_seconds += self.trainer.storage.latest().get("data_time", (0.0, 0))[0]
        self._steps += 1
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._report(done)
            self._seconds = self._data_seconds = 0.0
            self._steps = 0

    def _report(self, done: int) -> None:
        speed = self._batch_size * self._steps / self._seconds
        share = min(1.0, self._data_seconds / self._seconds)
        memory, kind = peak_memory()
        left = datetime.timedelta(seconds=int(self._seconds / self._steps * (self.trainer.max_iter - done)))
        self.trainer.storage.put_scalars(
            images_per_second=speed, data_share=share, peak_memory_mb=memory, smoothing_hint=False
        )
        logger.info(
            "%d of %d iterations: %.3g images/s, %.0f %% of the time spent on data, peak memory (%s) %.0f MB, ETA %s",
            *(done, self.trainer.max_iter, speed, 100 * share, kind, memory, left),
        )


def peak_memory() -> tuple[float, str]:
    """The most memory in use so far in MB, and which: of torch on the GPU, else of this process (NaN if unknown)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20, "GPU"
    peak = peak_resident_bytes()
    return (peak / 2**20, "RSS") if peak else (float("nan"), "unknown")


class BestModelFile(GroundingCheckpointer):
    """Writes the best model so far together with the metric that made it the best.

    It is not noted as the last checkpoint: a run goes on from the newest state, whichever is the best.
    """

    def __init__(self, model: nn.Module, save_dir: str, metric: str, **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.metric = metric
        self._adapters: Adapters | None = checkpointables.get("lora")  # go into a small file of their own as well
        self._average: WeightAverage | None = checkpointables.get("ema")

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth with the metric's newest value."""
        value, _ = get_event_storage().latest()[self.metric]
        super().save(name, best_metric=self.metric, best_value=float(value), **kwargs)
        if self._adapters is not None and self.save_to_disk:
            save_adapters(self._adapters, self._average, self.save_dir, BEST_FOLDER)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Leave the note as it is."""

    def best_so_far(self) -> tuple[float, int] | None:
        """Value and iteration of the file that an earlier part of the run wrote, if it was chosen by this metric."""
        path = os.path.join(self.save_dir, f"{BEST}.pth")
        if not os.path.isfile(path):
            return None
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if content.get("best_metric") != self.metric:
            return None
        return float(content["best_value"]), int(content["iteration"])


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, whose best value outlives an interruption: a resumed run does not overwrite a better model.

    A best model that `record` does not have is of another run in the same folder, and is overwritten.
    """

    def __init__(self, eval_period: int, file: BestModelFile, record: EvaluationRecord) -> None:
        super().__init__(eval_period, file, file.metric, file_prefix=BEST)
        self._file = file
        self._record = record

    def before_train(self) -> None:
        """Where the run goes on, take up the best value so far, which all processes take from the first one."""
        found = None
        if self.trainer.start_iter > 0 and comm.is_main_process():
            found = self._file.best_so_far()
            if found is not None and found[0] not in self._record.noted(self._file.metric):
                found = None
        found = comm.all_gather(found)[0]
        if found is not None:
            self.best_metric, self.best_iter = found
            logger.info("the best %s so far is %.5f, of iteration %d", self._file.metric, *found)
