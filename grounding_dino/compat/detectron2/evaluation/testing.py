"""Printing results, and holding them against expected ones."""

from __future__ import annotations

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results so that they are easily copied into a spreadsheet: for each task its metrics, then their values."""
    if not isinstance(results, Mapping) or not len(results):
        raise ValueError(f"there are no results to print: {results!r}.")
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        # Values of single categories ("AP-cat") would make the row unreadable.
        shown = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(shown))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in shown.values()))


def verify_results(cfg: Any, results: Mapping[str, Any]) -> bool:
    """Hold results against TEST.EXPECTED_RESULTS, a list of (task, metric, expected value, tolerance).

    Returns:
        True where all agree. Where one does not, logs both and ends the program with status 1.
    """
    agrees = True
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results[task].get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - expected) > tolerance:
            logger.error("%s of %s is %s, but %s (within %s) is expected", metric, task, actual, expected, tolerance)
            agrees = False
    if not agrees:
        logger.error("results differ from the expected ones:\n%s", pprint.pformat(results))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("results are as expected")
    return agrees


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, with keys joined by "/"."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": inner for name, inner in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
