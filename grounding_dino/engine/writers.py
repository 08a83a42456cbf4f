"""Metrics for Weights & Biases (SOLVER.WANDB_PROJECT), beside the log, metrics.json and TensorBoard."""

from __future__ import annotations

import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

RUN_FILE = "wandb_run.txt"  # of OUTPUT_DIR: the id under which a run that goes on is found again


class WandbWriter(EventWriter):
    """Sends scalars to a project of Weights & Biases, under the names and iterations of metrics.json.

    The run is named after OUTPUT_DIR, holds the configuration, and is taken up where training goes on after an
    interruption. Where and whether data is sent is the package's matter: `WANDB_MODE=offline` keeps it below
    OUTPUT_DIR.
    """

    def __init__(self, cfg: CfgNode, resumes: Callable[[], bool], window_size: int = 20) -> None:
        """
        Args:
            resumes: whether the run goes on; asked at the first write.
            window_size: iterations whose median is sent of scalars that Detectron2's writers smooth.

        Raises:
            ValueError: the package is missing.
        """
        check_wandb(cfg)
        self._cfg = cfg
        self._resumes = resumes
        self._window_size = window_size
        self._run: Any = None
        self._last_write = -1

    def write(self) -> None:
        """Send what was put into the event storage since the last call."""
        by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                by_iteration[iteration][name] = value
        if not by_iteration:
            return
        if self._run is None:
            self._run = self._start()
        for iteration in sorted(by_iteration):
            self._run.log(by_iteration[iteration], step=iteration)
        self._last_write = max(by_iteration)

    def close(self) -> None:
        """Finish the run, if it was begun."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _start(self) -> Any:
        import wandb

        folder = self._cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, RUN_FILE)
        known = None
        if self._resumes() and os.path.isfile(file):
            with open(file, encoding="utf-8") as lines:
                known = lines.read().strip()
        run = wandb.init(
            project=self._cfg.SOLVER.WANDB_PROJECT,
            name=os.path.basename(os.path.abspath(folder)),
            dir=folder,
            config=yaml.safe_load(self._cfg.dump()),
            id=known,
            resume="allow" if known else None,
        )
        with open(file, "w", encoding="utf-8") as lines:
            lines.write(f"{run.id}\n")
        return run


def check_wandb(cfg: CfgNode) -> None:
    """See that the package is there, where the configuration asks for it.

    Raises:
        ValueError: it is missing.
    """
    if cfg.SOLVER.WANDB_PROJECT and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"SOLVER.WANDB_PROJECT is {cfg.SOLVER.WANDB_PROJECT!r}, but the package wandb is not installed; "
            'pip install wandb, or set SOLVER.WANDB_PROJECT "" (metrics.json and TensorBoard are written anyway)'
        )
