"""Results of evaluations: the protocol above them, tables with means, json files."""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.data.datasets.groups import dataset_groups
from grounding_dino.evaluation.gathering import write_json
from grounding_dino.evaluation.protocol import common_protocol, format_protocol, prompt_protocol
from grounding_dino.tables import format_table

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
SUMMARY_FILE = "summary.json"

Metrics = dict[str, float]
Row = tuple[str, str, Metrics]  # data set, task, metrics


@dataclass(frozen=True)
class Seen:
    """What a protocol says of pictures that went through a model.

    Attributes:
        pictures: how many.
        text: the caption or the names that the first of them came with.
        alike: whether all came with that.
        limited: what TEST.DETECTIONS_PER_IMAGE limits the detections of.
    """

    pictures: int = 0
    text: str | Sequence[str] = ""
    alike: bool = True
    limited: str = "picture"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Seen:
        """Of one picture; see `grounding_dino.modeling.postprocess.postprocess_picture` for the limits."""
        text = record["caption"] if "caption" in record else list(record.get("categories", ()))
        referring = bool(record.get("referring"))
        return cls(1, text, not referring, "prompt" if referring else "phrase" if record.get("phrases") else "picture")

    def joined(self, *others: Seen) -> Seen:
        """Of all of them."""
        parts = [part for part in (self, *others) if part.pictures]
        if not parts:
            return self
        alike = all(part.alike and part.text == parts[0].text for part in parts)
        return Seen(sum(part.pictures for part in parts), parts[0].text, alike, parts[0].limited)


class ReportedEvaluator(DatasetEvaluator):
    """Runs a data set's evaluators; logs the protocol before their numbers, and writes both into `metrics.json`.

    The protocol is :func:`common_protocol`, the prompt that pictures came with, and what the evaluators' own
    `protocol()` say, where they have one; theirs wins.

    Args:
        cfg: of the run.
        dataset_name: what is evaluated.
        evaluators: by the name of their kind; their results have different tasks.
        folder: where `metrics.json` goes.
    """

    def __init__(
        self, cfg: CfgNode, dataset_name: str, evaluators: Mapping[str, DatasetEvaluator], folder: str
    ) -> None:
        self.cfg = cfg
        self.dataset_name = dataset_name
        self.evaluators = dict(evaluators)
        self.folder = folder
        self._all = DatasetEvaluators(list(self.evaluators.values()))
        self._seen = Seen()

    def reset(self) -> None:
        """Reset all."""
        self._all.reset()
        self._seen = Seen()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Hand the batch to all, and note the prompt that it came with."""
        self._all.process(inputs, outputs)
        for record in inputs:
            self._seen = self._seen.joined(Seen.of(record))

    def protocol(self, seen: Seen) -> dict[str, str]:
        """All of it, for pictures that were seen."""
        protocol = common_protocol(self.cfg, seen.pictures, seen.limited)
        if seen.text:
            protocol.update(prompt_protocol(self.cfg, seen.text) if seen.alike else {"prompt": "each picture's own"})
        own: dict[str, str] = {}
        for kind, evaluator in self.evaluators.items():
            for key, value in _own_protocol(evaluator).items():
                own[f"{key} ({kind})" if own.get(key, value) != value else key] = value
        return {**protocol, **{key: value for key, value in own.items() if value}}

    def evaluate(self) -> OrderedDict[str, Any] | None:
        """The results of all evaluators; None on all but the main process."""
        seen = Seen().joined(*comm.gather(self._seen, dst=0))
        protocol = self.protocol(seen) if comm.is_main_process() else {}
        if protocol:
            logger.info("protocol of %s:\n%s", self.dataset_name, format_protocol(protocol))
        results = self._all.evaluate()
        if not comm.is_main_process():
            return None
        results = OrderedDict(results or {})
        content = {"data set": self.dataset_name, "protocol": protocol, "metrics": results}
        write_json(self.folder, METRICS_FILE, _finite(content))
        return results


def _own_protocol(evaluator: DatasetEvaluator) -> dict[str, str]:
    protocol = getattr(evaluator, "protocol", None)  # other people's evaluators have none
    return dict(protocol()) if callable(protocol) else {}


# ---------------------------------------------------------------------------------------------------- tables, files


def results_table(results: Mapping[str, Any], datasets: Sequence[str]) -> str:
    """One aligned table of data sets and tasks against metrics, without those of single categories ("AP-cat").

    Several data sets end with means, see :func:`mean_rows`.
    """
    rows = _rows(results, datasets)
    means = mean_rows(rows)
    columns = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    cells = [
        [f"{dataset} {task}", *(f"{metrics[name]:.2f}" if name in metrics else "" for name in columns)]
        for dataset, task, metrics in [*rows, *means]
    ]
    table = format_table(["data set", *columns], cells)
    return f"{table}\n  (a mean has the metrics that all of its data sets give)" if means else table


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over all data sets, and before that over each known group (such as odinw13) that is there in full.

    A mean has the metrics that every one of its data sets gives under the same task, as a number: averages of
    different data sets would not be comparable otherwise. There is none of a single data set.
    """
    present = list(dict.fromkeys(dataset for dataset, _, _ in rows))
    groups: dict[frozenset[str], str] = {}
    for name, listed in dataset_groups().items():
        if set(listed) <= set(present):
            groups.setdefault(frozenset(listed), name)
    groups.setdefault(frozenset(present), "all")
    means: list[Row] = []
    for members, name in groups.items():
        for task in dict.fromkeys(task for _, task, _ in rows):
            found = [metrics for dataset, kind, metrics in rows if kind == task and dataset in members]
            shared = [key for key in found[0] if all(_is_number(m.get(key)) for m in found)] if found else []
            if len(members) > 1 and len(found) == len(members) and shared:
                label = f"mean of {name} ({len(members)})"
                means.append((label, task, {key: sum(m[key] for m in found) / len(found) for key in shared}))
    return means


def report_results(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Log the table of all data sets of DATASETS.TEST, and write it to `summary.json` in OUTPUT_DIR/inference.

    Metrics of single categories are in the data sets' own `metrics.json`.
    """
    logger.info("results:\n%s", results_table(results, list(cfg.DATASETS.TEST)))
    rows = _rows(results, list(cfg.DATASETS.TEST))
    content = {"data sets": _nested(rows), "means": _nested(mean_rows(rows))}
    write_json(os.path.join(cfg.OUTPUT_DIR, "inference"), SUMMARY_FILE, _finite(content))


def _rows(results: Mapping[str, Any], datasets: Sequence[str]) -> list[Row]:
    by_dataset = {datasets[0]: results} if len(datasets) == 1 else results
    return [
        (dataset, task, {name: value for name, value in metrics.items() if "-" not in name})
        for dataset, tasks in by_dataset.items()
        for task, metrics in tasks.items()
        if isinstance(metrics, Mapping)
    ]


def _nested(rows: Sequence[Row]) -> dict[str, dict[str, Metrics]]:
    nested: dict[str, dict[str, Metrics]] = {}
    for dataset, task, metrics in rows:
        nested.setdefault(dataset, {})[task] = metrics
    return nested


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _finite(content: Any) -> Any:
    """`content` with None for NaN and infinity, which json cannot say."""
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
