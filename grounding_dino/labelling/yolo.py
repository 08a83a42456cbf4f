"""YOLO's folder: a text file a picture, in the layout that Ultralytics' tools read."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from grounding_dino.labelling.label_folder import whole_folder
from grounding_dino.labelling.reading import PictureReader

from PIL import Image

Record = dict[str, Any]

PICTURES = ("link", "copy", "none")
_PARTS = ("labels", "images", "classes.txt", "train.txt", "data.yaml")


def write_yolo(folder: Path, records: Iterable[Record], names: Sequence[str], pictures: str, lost: Counter[str]) -> int:
    """Write `labels/NAME.txt` of every record, `images/NAME.*`, `classes.txt`, `train.txt` and `data.yaml`.

    A line is a class from 0 and the box's centre, width and height as shares of the picture; of an annotation with
    polygons the class and the largest one's corners, as for segmentation. NAME is the picture's, numbered where two
    pictures have the same without suffix. Trainings find a picture's labels by its place in `images`.

    Args:
        pictures: "link" makes symbolic links to files, "copy" copies (also out of shards), "none" does neither.

    Returns:
        the number of pictures.
    """
    count, reader = 0, PictureReader()
    with whole_folder(folder, _PARTS) as partial:
        (partial / "labels").mkdir()
        with open(partial / "train.txt", "w", encoding="utf-8") as listed:
            for record in records:
                file = partial / "labels" / f"{record['label_name']}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                lines = [_line(annotation, record) for annotation in record["annotations"]]
                file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                name = _picture(record, partial, pictures, reader, lost)
                if name:
                    listed.write(f"./{name}\n")
                count += 1
        (partial / "classes.txt").write_text("".join(f"{' '.join(n.split())}\n" for n in names), encoding="utf-8")
        (partial / "data.yaml").write_text(_description(folder, names), encoding="utf-8")
    return count


def _line(annotation: Record, record: Record) -> str:
    height, width = record["height"], record["width"]
    polygons = annotation.get("segmentation")
    if isinstance(polygons, list):
        values = [value / (height if place % 2 else width) for place, value in enumerate(polygons[0])]
    else:
        x, y, w, h = annotation["bbox"]
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    return " ".join([str(annotation["category_id"]), *(f"{min(max(value, 0.0), 1.0):.6f}" for value in values)])


def _picture(record: Record, folder: Path, pictures: str, reader: PictureReader, lost: Counter[str]) -> str:
    """Put the picture into the folder; its path there, or "" where it is left out."""
    if pictures == "none":
        return ""
    path = record["source"].get("path")
    if path is None and pictures == "link":
        lost["pictures in shards, to which nothing can be linked: --yolo-pictures copy takes them out"] += 1
        return ""
    encoded = reader.encoded(record) if path is None else b""
    suffix = PurePosixPath(record["file_name"]).suffix.lower() or _suffix(path or io.BytesIO(encoded))
    name = f"images/{record['label_name']}{suffix}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if path is None:
        (folder / name).write_bytes(encoded)
    elif pictures == "link":
        os.symlink(os.path.abspath(path), folder / name)
    else:
        shutil.copyfile(path, folder / name)
    return name


def _suffix(file: str | io.BytesIO) -> str:
    """What the name of a picture without a suffix should have."""
    with Image.open(file) as picture:
        return f".{(picture.format or 'png').lower()}"


def _description(folder: Path, names: Sequence[str]) -> str:
    """data.yaml; json's strings are YAML's."""
    listed = "".join(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(names))
    path = json.dumps(str(folder.resolve()), ensure_ascii=False)
    return f"path: {path}\ntrain: train.txt\nval: train.txt  # replace it by pictures held back\nnames:\n{listed}"
