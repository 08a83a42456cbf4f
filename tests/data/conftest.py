"""Sharded rows, generated: JSON lines and webdataset tar files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)

import numpy as np
import pytest
from PIL import Image

Row = dict[str, Any]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def grounding_row() -> Callable[..., Row]:
    """`grounding_row(n)`: an ODVG row about the picture n, each third wider than high, of one to three phrases."""

    def make(number: int, **more: Any) -> Row:
        words = [("a cat", 0, 5), ("a dog", 10, 15), ("a hat", 20, 25)][: 1 + number % 3]
        regions = [{"bbox": [1, 1, 9, 9], "phrase": phrase, "tokens_positive": [[a, b]]} for phrase, a, b in words]
        size = {"height": 24, "width": 32} if number % 3 == 0 else {"height": 32, "width": 24}
        caption = " and ".join(phrase for phrase, _, _ in words)
        return {
            "filename": f"{number}.png",
            **size,
            "grounding": {"caption": caption, "regions": regions},
            **more,
        }

    return make


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """`write_jsonl(name, rows)`: a file of rows; text among them is a line as it is."""

    def write(name: str, rows: Iterable[Row | str]) -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return str(tmp_path / name)

    return write


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """`picture(n, width, height)`: an encoded picture of its own colour."""

    def encode(number: int, width: int, height: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), number % 256, dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture
def write_tar(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., str]:
    """`write_tar(name, rows)`: a webdataset shard with a picture for each row; or `(member name, bytes)` as it is."""

    def write(name: str, rows: Iterable[Row | tuple[str, bytes]]) -> str:
        with tarfile.open(tmp_path / name, "w") as archive:
            for row in rows:
                for member, content in [row] if isinstance(row, tuple) else pair(row):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return str(tmp_path / name)

    def pair(row: Row) -> list[tuple[str, bytes]]:
        number = int(row["filename"].split(".")[0])
        encoded = picture(number, row["width"], row["height"])
        return [(f"{number:04}.png", encoded), (f"{number:04}.json", json.dumps(row).encode())]

    return write
