"""Annotation files and pictures of a few pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """A folder with a.png and b.png, 50 wide and 40 high."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(folder / name)
    return str(folder)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """`write_rows(rows, name="rows.jsonl")`: a file of rows; text among them is a line as it is."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def new_name() -> Iterator[str]:
    """A name for a data set, which is forgotten afterwards."""
    name = "a_set_of_this_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
