"""Sharded rows, generated: JSON lines and webdataset tar files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.data.segmentation_maps import write_panoptic_map

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


@pytest.fixture
def write_panoptic(data_root: Path) -> Callable[..., dict[str, Any]]:
    """`write_panoptic(json_file, image_root, png_root, maps, categories)`: a set in COCO's panoptic format.

    `maps` are {name: (segment ids (H, W), {segment id: category id})}, paths below `data_root`; image ids count from 1.
    Returns the content of the json, which may be changed and written again.
    """

    def write(
        json_file: str, image_root: str, png_root: str, maps: dict[str, Any], categories: Iterable[dict]
    ) -> dict[str, Any]:
        for folder in (image_root, png_root, str(Path(json_file).parent)):
            (data_root / folder).mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [dict(c) for c in categories]}
        for number, (name, (ids, classes)) in enumerate(maps.items(), start=1):
            ids = np.asarray(ids)
            Image.fromarray(np.zeros((*ids.shape, 3), dtype=np.uint8)).save(data_root / image_root / f"{name}.jpg")
            write_panoptic_map(data_root / png_root / f"{name}.png", ids)
            size = {"height": ids.shape[0], "width": ids.shape[1]}
            content["images"].append({"id": number, "file_name": f"{name}.jpg", **size})
            segments = [{"id": segment, "category_id": category, "iscrowd": 0} for segment, category in classes.items()]
            content["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        (data_root / json_file).write_text(json.dumps(content))
        return content

    return write
