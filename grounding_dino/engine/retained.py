"""Target and retained data sets side by side: what a fine-tuning wins, and what it forgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from grounding_dino.tables import format_table

from detectron2.config import CfgNode


def comparison_table(cfg: CfgNode, before: Mapping[str, float], now: Mapping[str, float]) -> str:
    """One row a data set (of DATASETS.TEST, then of TEST.RETAINED) and metric: before, now, and the change.

    Args:
        before, now: flat metrics, as `grounding_dino.engine.evaluations` names them; without `before` there is one
            column. Metrics of single categories ("AP-cat") are left out. Rows of averaged weights, which training
            starts from the trained ones, are held against the same "before".
    """
    header = ["data set", "metric", "before", "now", "change"] if before else ["data set", "metric", "now"]
    rows = []
    for title, prefix, plain in _parts(cfg):
        for name, value in now.items():
            metric = name.removeprefix(prefix)
            if not name.startswith(prefix) or _belongs_elsewhere(metric, prefix, cfg) or "-" in metric:
                continue
            cells = [title, metric.replace("/", " ")]
            if before:
                first = before.get(plain + metric)
                cells += ["", f"{value:.2f}", ""] if first is None else _change(first, value)
            else:
                cells.append(f"{value:.2f}")
            rows.append(cells)
    return format_table(header, rows)


def _change(first: float, value: float) -> list[str]:
    change = value - first
    return [f"{first:.2f}", f"{value:.2f}", "" if math.isnan(change) else f"{change:+.2f}"]


def _parts(cfg: CfgNode) -> Iterator[tuple[str, str, str]]:
    """(row title, prefix of its metrics, prefix of the same before training) of each data set and kind of weights."""
    target = list(cfg.DATASETS.TEST)
    for average in ("", "ema/"):
        note = ", averaged weights" if average else ""
        for name in target:
            own = "" if len(target) == 1 else f"{name}/"
            yield f"{name}{note}", f"{average}{own}", own
        for name in cfg.TEST.RETAINED:
            own = f"retained/{name}/"
            yield f"{name} (retained){note}", f"{average}{own}", own


def _belongs_elsewhere(metric: str, prefix: str, cfg: CfgNode) -> bool:
    """With a single target its metrics have no prefix of their own, so those of the other parts begin with it too."""
    return prefix in ("", "ema/") and metric.startswith(("ema/", "retained/"))
