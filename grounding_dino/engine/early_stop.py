"""Ending a training whose metric has stopped to grow (SOLVER.EARLY_STOP)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.engine.evaluations import EvaluationRecord

from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase

logger = logging.getLogger(__name__)


class StopTraining(BaseException):
    """Ends the loop over iterations as Ctrl-C would, without the report of an error; `Trainer.train` catches it."""


class EarlyStop(HookBase):
    """Ends a run after SOLVER.EARLY_STOP.PATIENCE evaluations in a row in which the metric did not grow.

    It grows where it exceeds the best so far by more than MIN_GAIN. The decision is a function of the run's record of
    evaluations, so all processes, and a run that goes on after an interruption, come to the same. The weights become
    `model_final`. To be registered last.
    """

    def __init__(self, cfg: CfgNode, record: EvaluationRecord, checkpointer: GroundingCheckpointer) -> None:
        """
        Raises:
            ValueError: there is no metric to go by, or a number is negative.
        """
        options = cfg.SOLVER.EARLY_STOP
        if options.PATIENCE < 0 or options.MIN_GAIN < 0:
            raise ValueError(
                f"SOLVER.EARLY_STOP has PATIENCE {options.PATIENCE} and MIN_GAIN {options.MIN_GAIN}; neither may be "
                "negative"
            )
        if not cfg.SOLVER.BEST_CHECKPOINT_METRIC:
            raise ValueError(
                "SOLVER.EARLY_STOP.PATIENCE needs a metric to go by: set SOLVER.BEST_CHECKPOINT_METRIC, such as bbox/AP"
            )
        self._metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
        self._period = cfg.TEST.EVAL_PERIOD
        self._patience, self._min_gain = options.PATIENCE, options.MIN_GAIN
        self._record = record
        self._checkpointer = checkpointer

    def before_train(self) -> None:
        """A run that had stopped is not taken up again, unless it is given more patience."""
        if self._is_due():
            raise StopTraining(f"{self._why()} before this run was taken up; raise SOLVER.EARLY_STOP.PATIENCE to go on")

    def after_step(self) -> None:
        """Decide, where there was an evaluation; the one after the last step needs no decision."""
        done = self.trainer.iter + 1
        if done % self._period == 0 and done != self.trainer.max_iter and self._is_due():
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            raise StopTraining(f"{self._why()}: training ends after {done} of {self.trainer.max_iter} iterations")

    def _is_due(self) -> bool:
        return evaluations_without_gain(self._record.values(self._metric), self._min_gain) >= self._patience

    def _why(self) -> str:
        return f"{self._metric} has not grown in {self._patience} evaluations"


def evaluations_without_gain(values: Sequence[float], min_gain: float) -> int:
    """How many values have come since the best, where it takes more than `min_gain` to be better."""
    best, waited = -math.inf, 0
    for value in values:
        if value > best + min_gain:
            best, waited = value, 0
        else:
            waited += 1
    return waited
