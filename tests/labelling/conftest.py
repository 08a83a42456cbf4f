"""Pictures, and workers that do what a test says."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def encoded(number: int, size: tuple[int, int] = (40, 60)) -> bytes:
    """A picture of noise, (height, width)."""
    noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in three folders, two of the same name, and files that are none."""
    for number, name in enumerate(["b.png", "a.png", "sub/a.png", "sub/deep/c.png", "a.jpg"]):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(number))
    (tmp_path / "in" / "notes.md").write_text("no picture")
    return tmp_path / "in"


@pytest.fixture
def write_tar() -> Callable[[Path, dict[str, bytes]], Path]:
    """`write_tar(path, {member: content})`."""

    def write(path: Path, members: dict[str, bytes]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """`picture(number, size)`: an encoded one of noise."""
    return encoded


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """`write_parquet(path, **columns)`."""

    def write(path: Path, **columns: Any) -> Path:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
        return path

    return write
