"""What a run is evaluated on, during training and alone, and the record that outlives an interruption."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from grounding_dino.checkpoint.saving import write_atomically
from grounding_dino.engine.ema import WeightAverage
from grounding_dino.engine.retained import comparison_table
from grounding_dino.evaluation.build import metric_names

from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

Results = dict[str, Any]
Test = Callable[[CfgNode, nn.Module], Mapping[str, Any]]  # of DATASETS.TEST, as Detectron2's `DefaultTrainer.test`

RETAINED = "retained"  # under which results of TEST.RETAINED lie, by data set
AVERAGED = "ema"  # under which results of averaged weights lie
_LISTED = 20


class EvaluationRecord:
    """The metrics of a run's evaluations, in `evaluations.jsonl` of its folder: a line each, with `steps` done by then.

    It is what early stopping and "before" columns go by, so that a run that goes on after an interruption decides as an
    uninterrupted one. The same in all processes; the first one reads and writes the file.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "evaluations.jsonl")
        self._evaluations: list[tuple[int, dict[str, float]]] = []

    def go_on_from(self, steps: int) -> None:
        """Take up what an earlier part of the run, of so many steps, noted.

        Where the run starts, the file is another run's and goes, lest an interruption make it this one's.
        """
        if steps == 0 and comm.is_main_process():
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path)
        found = comm.all_gather(self._read() if comm.is_main_process() else [])[0]
        self._evaluations = [(at, metrics) for at, metrics in found if at <= steps]

    def noted(self, metric: str) -> list[float]:
        """The metric at each evaluation that the file has now, also at those after the steps that are taken up."""
        return [metrics[metric] for _, metrics in self._read() if metric in metrics]

    def _read(self) -> list[tuple[int, dict[str, float]]]:
        if not os.path.isfile(self.path):
            return []
        with open(self.path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [(row.pop("steps"), row) for row in rows]

    def add(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Note an evaluation."""
        self._evaluations = [*((at, known) for at, known in self._evaluations if at != steps), (steps, dict(metrics))]
        if comm.is_main_process():
            lines = [json.dumps({"steps": at, **known}) for at, known in self._evaluations]
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            write_atomically(self.path, lambda file: file.write(("\n".join(lines) + "\n").encode()))

    def values(self, metric: str) -> list[float]:
        """The metric at each evaluation since training began."""
        return [metrics[metric] for steps, metrics in self._evaluations if steps > 0 and metric in metrics]

    @property
    def before(self) -> dict[str, float]:
        """The metrics from before the first step; empty where there was no evaluation."""
        return next((metrics for steps, metrics in self._evaluations if steps == 0), {})


class Evaluations:
    """Evaluates a model on DATASETS.TEST and TEST.RETAINED, and where there are averaged weights, also with these.

    Results are those of DATASETS.TEST as Detectron2 gives them, with "retained" (by data set) and "ema" (all of it
    again) beside them.
    """

    def __init__(
        self, cfg: CfgNode, test: Test, record: EvaluationRecord | None = None, average: WeightAverage | None = None
    ) -> None:
        self._cfg = cfg
        self._test = test
        self._record = record
        self._average = average

    def __call__(self, model: nn.Module, steps: int = 0) -> Results:
        """Evaluate after `steps` training steps; called in all processes, which get the same results.

        Raises:
            ValueError: the results have no SOLVER.BEST_CHECKPOINT_METRIC.
        """
        cfg = self._cfg
        results = self._measure(cfg if self._record is None else _in_training(cfg, steps), model)
        if self._average is not None:
            cfg = _in_training(_below(cfg, AVERAGED), steps, ", averaged")
            with self._average.applied():
                results[AVERAGED] = self._measure(cfg, model)
        results = comm.all_gather(results)[0]  # only the first process has metrics
        metrics = flatten_results_dict(results)
        before: Mapping[str, float] = {}
        if self._record is not None:
            check_metric(self._cfg.SOLVER.BEST_CHECKPOINT_METRIC, metrics)
            before = self._record.before
            self._record.add(steps, metrics)
        if self._cfg.TEST.RETAINED or self._average is not None:
            logger.info("evaluation:\n%s", comparison_table(self._cfg, before, metrics))
        return results

    def _measure(self, cfg: CfgNode, model: nn.Module) -> Results:
        results = dict(self._test(cfg, model) or {})
        if cfg.TEST.RETAINED:
            names = tuple(cfg.TEST.RETAINED)
            found = dict(self._test(_of_retained(cfg), model) or {})
            results[RETAINED] = {names[0]: found} if len(names) == 1 else found
        return results


def _of_retained(cfg: CfgNode) -> CfgNode:
    changed = _below(cfg, RETAINED)
    changed.defrost()
    changed.DATASETS.TEST = cfg.TEST.RETAINED
    changed.freeze()
    return changed


def _below(cfg: CfgNode, folder: str) -> CfgNode:
    """`cfg` with files in a folder of OUTPUT_DIR."""
    changed = cfg.clone()
    changed.defrost()
    changed.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, folder)
    changed.freeze()
    return changed


def _in_training(cfg: CfgNode, steps: int, which: str = "") -> CfgNode:
    """`cfg` with words on the weights in place of the file, which the protocol of an evaluation names."""
    changed = cfg.clone()
    changed.defrost()
    changed.MODEL.WEIGHTS = f"of this training after {steps} step{'' if steps == 1 else 's'}{which}"
    changed.MODEL.LORA.WEIGHTS = ""
    changed.freeze()
    return changed


def evaluate_all(cfg: CfgNode, model: nn.Module, test: Test) -> Results:
    """Evaluate a model once, on TEST.RETAINED too where that names data sets; the results on DATASETS.TEST."""
    return of_target(Evaluations(cfg, test)(model))


def of_target(results: Mapping[str, Any]) -> Results:
    """The part of results that is about DATASETS.TEST and the trained weights."""
    return {name: value for name, value in results.items() if name not in (RETAINED, AVERAGED)}


def check_metric_name(cfg: CfgNode) -> None:
    """See before training that evaluations can give SOLVER.BEST_CHECKPOINT_METRIC.

    Raises:
        ValueError: there are no evaluations, none of the data set or kind of weights that it begins with, or not this
            metric.
    """
    metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
    if cfg.TEST.EVAL_PERIOD <= 0:
        raise ValueError("SOLVER.BEST_CHECKPOINT_METRIC needs evaluations during training: set TEST.EVAL_PERIOD")
    if metric.startswith(f"{AVERAGED}/") and not cfg.SOLVER.EMA.ENABLED_ON:
        raise ValueError(
            f"SOLVER.BEST_CHECKPOINT_METRIC is {metric!r}, but there are no averaged weights: set "
            "SOLVER.EMA.ENABLED_ON True"
        )
    average = f"{AVERAGED}/" if metric.startswith(f"{AVERAGED}/") else ""
    dataset, prefix = _dataset_of(cfg, metric.removeprefix(average))
    known = metric_names(cfg, dataset)
    name = metric.removeprefix(average + prefix)
    if known is not None and name.split("-")[0] not in known:
        check_metric(metric, dict.fromkeys(average + prefix + task_and_metric for task_and_metric in known))


def _dataset_of(cfg: CfgNode, metric: str) -> tuple[str, str]:
    """The data set that a metric (of any weights) is of, and what its name begins with for that."""
    sets, parts = list(cfg.DATASETS.TEST), metric.split("/")
    wrong = f"SOLVER.BEST_CHECKPOINT_METRIC is {cfg.SOLVER.BEST_CHECKPOINT_METRIC!r}, but"
    if parts[0] == RETAINED:
        if len(parts) < 2 or parts[1] not in cfg.TEST.RETAINED:
            raise ValueError(
                f"{wrong} behind {RETAINED}/ there has to be a data set of TEST.RETAINED, which is "
                f"{list(cfg.TEST.RETAINED)}"
            )
        return parts[1], f"{RETAINED}/{parts[1]}/"
    if not sets:
        raise ValueError(f"{wrong} DATASETS.TEST names no data set")
    if len(sets) == 1:
        return sets[0], ""
    if parts[0] not in sets:
        raise ValueError(
            f"{wrong} with several data sets in DATASETS.TEST it has to begin with one of them, as in "
            f"'{sets[0]}/{metric}'"
        )
    return parts[0], f"{parts[0]}/"


def check_metric(metric: str, metrics: Mapping[str, Any]) -> None:
    """See that an evaluation gives the metric that decides about the best checkpoint ("" needs none).

    Raises:
        ValueError: it does not; the message lists those that it gives.
    """
    if not metric or metric in metrics:
        return
    close = difflib.get_close_matches(metric, metrics, n=3)
    names = [name for name in metrics if "-" not in name.rsplit("/", 1)[-1]]  # without those of single categories
    more = f" and {len(metrics) - len(names[:_LISTED])} more" if len(metrics) > len(names[:_LISTED]) else ""
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(
        f"SOLVER.BEST_CHECKPOINT_METRIC is {metric!r}, which the evaluation does not give; {hint}"
        f"there are {', '.join(names[:_LISTED]) or 'no metrics at all'}{more}"
    )


class EvaluateBefore(HookBase):
    """Evaluates before the first step of a run, where it starts; what a run that goes on noted then stays."""

    def __init__(self, evaluate: Callable[[int], Mapping[str, Any]], record: EvaluationRecord, enabled: bool) -> None:
        """`evaluate` takes the number of steps done; without `enabled` only the record is taken up."""
        self._evaluate = evaluate
        self._record = record
        self._enabled = enabled

    def before_train(self) -> None:
        """Take up the record, and evaluate."""
        self._record.go_on_from(self.trainer.start_iter)
        if self._enabled and self.trainer.start_iter == 0:
            metrics = flatten_results_dict(dict(self._evaluate(0)))
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
            comm.synchronize()
