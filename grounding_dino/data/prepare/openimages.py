"""OpenImages v6: makes a COCO json of the csv files of boxes.

Boxes are fractions of the picture there, so every picture's size is read from its file. `IsGroupOf` ("more than five
instances that overlap") becomes `iscrowd`: not trained on, and ignored by COCO's evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.register_coco_sets import OPENIMAGES_HINT
from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all

from PIL import Image
from tqdm import tqdm

# split of the registered name -> (picture folder, csv of boxes)
SPLITS = {
    "train": ("train", "oidv6-train-annotations-bbox.csv"),
    "val": ("validation", "validation-annotations-bbox.csv"),
}
CLASSES = "class-descriptions-boxable.csv"
_ORIENTATION = 0x0112  # EXIF; values above 4 exchange width and height when a picture is read upright

Size = tuple[int, int]


def read_classes(path: Path) -> dict[str, str]:
    """Label (`/m/01g317`) -> name, in the order of the file, with or without its header.

    Raises:
        ValueError: the file is empty, or a row has no name.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and row[0] != "LabelName"]
    for row in rows:
        if len(row) < 2 or not row[1].strip():
            raise ValueError(f"{path} has a label without a name: {row}; download the file again")
    if not rows:
        raise ValueError(f"{path} lists no classes; download the file again")
    return {row[0]: row[1] for row in rows}


def convert(split: str, root: Path, workers: int = 8, quiet: bool = False) -> Counter[str]:
    """Write `annotations/openimages_v6_<split>.json`; counts of what was written and of what was left out.

    Raises:
        FileNotFoundError: csv files or pictures are not there.
        ValueError: no picture of the csv file is there, or the file has other columns.
    """
    folder, boxes_name = SPLITS[split]
    base = root / "OpenImages"
    boxes = require(base / "annotations" / boxes_name, OPENIMAGES_HINT)
    classes = read_classes(require(base / "annotations" / CLASSES, OPENIMAGES_HINT))
    pictures = require(base / folder, OPENIMAGES_HINT)
    names = list(dict.fromkeys(row["ImageID"] for row in _rows(boxes, quiet)))
    files = _files(pictures)
    sizes = _sizes([(name, pictures / files[name]) for name in names if name in files], workers, quiet)
    counts: Counter[str] = Counter({"pictures that are missing or broken": len(names) - len(sizes)})
    if not sizes:
        raise ValueError(f"{pictures} has none of the {len(names)} pictures of {boxes}; {OPENIMAGES_HINT}")
    numbers = {name: number for number, name in enumerate(sizes, start=1)}
    categories = [{"id": number, "name": name} for number, name in enumerate(classes.values(), start=1)]
    labels = {label: number for number, label in enumerate(classes, start=1)}
    images = [
        {"id": numbers[name], "file_name": files[name], "width": width, "height": height}
        for name, (width, height) in sizes.items()
    ]
    output = base / "annotations" / f"openimages_v6_{split}.json"
    partial = output.with_name(output.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        # By hand, since 14 million boxes need not be in memory at once.
        file.write(f'{{"categories":{json.dumps(categories)},"images":{json.dumps(images)},"annotations":[')
        _write_annotations(file, _rows(boxes, quiet), sizes, numbers, labels, counts)
        file.write("]}")
    os.replace(partial, output)
    counts["pictures"] = len(images)
    return counts


def _rows(path: Path, quiet: bool) -> Iterator[dict[str, str]]:
    needed = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not needed <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has the columns {reader.fieldnames}, but needs {sorted(needed)}")
        yield from tqdm(reader, desc=path.name, unit=" boxes", unit_scale=True, disable=quiet)


def _files(folder: Path) -> dict[str, str]:
    """Picture id -> its file below `folder`: the archives of the training set unpack into folders of their own."""
    return {
        os.path.splitext(name)[0]: Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".jpg")
    }


def _sizes(pictures: Sequence[tuple[str, Path]], workers: int, quiet: bool) -> dict[str, Size]:
    """Width and height, upright, of the pictures (id, file) that can be read."""
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(_size, (path for _, path in pictures))
        bar = tqdm(found, total=len(pictures), desc="sizes", unit=" pictures", unit_scale=True, disable=quiet)
        return {name: size for (name, _), size in zip(pictures, bar, strict=True) if size is not None}


def _size(path: Path) -> Size | None:
    try:
        with Image.open(path) as picture:  # reads the header alone
            width, height = picture.size
            return (height, width) if picture.getexif().get(_ORIENTATION, 1) > 4 else (width, height)
    except OSError:
        return None


def _write_annotations(
    file: IO[str],
    rows: Iterator[dict[str, str]],
    sizes: dict[str, Size],
    numbers: dict[str, int],
    labels: dict[str, int],
    counts: Counter[str],
) -> None:
    for row in rows:
        if row["ImageID"] not in sizes:
            counts["boxes of missing pictures"] += 1
        elif row["LabelName"] not in labels:
            counts["boxes of unlisted classes"] += 1
        else:
            annotation = _annotation(row, sizes[row["ImageID"]])
            if annotation is None:
                counts["boxes without area"] += 1
                continue
            counts["boxes"] += 1
            ids = {"id": counts["boxes"], "image_id": numbers[row["ImageID"]], "category_id": labels[row["LabelName"]]}
            file.write(("," if counts["boxes"] > 1 else "") + json.dumps({**ids, **annotation}, separators=(",", ":")))


def _annotation(row: dict[str, str], size: Size) -> dict[str, Any] | None:
    width, height = size
    left, right = (min(max(float(row[key]), 0.0), 1.0) * width for key in ("XMin", "XMax"))
    top, bottom = (min(max(float(row[key]), 0.0), 1.0) * height for key in ("YMin", "YMax"))
    if right <= left or bottom <= top:
        return None
    box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
    return {"bbox": box, "area": round(box[2] * box[3], 2), "iscrowd": int(row["IsGroupOf"] == "1")}


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_openimages.py`."""
    parser = get_parser("Make COCO json files of OpenImages v6's boxes in OpenImages/.")
    parser.add_argument("--splits", nargs="+", choices=sorted(SPLITS), default=sorted(SPLITS))
    parser.add_argument("--workers", type=int, default=8, help="threads that read the sizes of pictures")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_openimages.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    try:
        for folder, _ in (SPLITS[split] for split in options.splits):
            unpack_all(options.root / "OpenImages" / folder, options.root / "OpenImages" / folder, options.quiet)
        for split in options.splits:
            counts = convert(split, options.root, options.workers, options.quiet)
            print(f"{split}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, [f"openimages_v6_{split}" for split in options.splits])
