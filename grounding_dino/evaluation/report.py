"""Results of evaluations as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.tables import format_table


def results_table(results: Mapping[str, Any], datasets: Sequence[str]) -> str:
    """One aligned table of data sets and tasks against metrics, without those of single categories ("AP-cat")."""
    by_dataset = {datasets[0]: results} if len(datasets) == 1 else results
    rows = [
        (dataset, task, {name: value for name, value in metrics.items() if "-" not in name})
        for dataset, tasks in by_dataset.items()
        for task, metrics in tasks.items()
        if isinstance(metrics, Mapping)
    ]
    columns = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    cells = [
        [f"{dataset} {task}", *(f"{metrics[name]:.2f}" if name in metrics else "" for name in columns)]
        for dataset, task, metrics in rows
    ]
    return format_table(["data set", *columns], cells)
