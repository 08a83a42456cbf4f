"""What tools leave behind in a process, taken off again."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grounding_dino  # noqa: F401  (makes detectron2 importable)

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def tools_leave_no_trace() -> Iterator[None]:
    """Loggers and registered data sets are as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("grounding_dino", "detectron2", "fvcore")]
    before = [(log, log.handlers[:], log.propagate, log.level) for log in loggers]
    names = set(DatasetCatalog)
    yield
    for log, handlers, propagate, level in before:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)
    for name in set(DatasetCatalog) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
