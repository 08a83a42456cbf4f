"""Data sets named on the command line: `--dataset NAME=annotations:image_folder`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError, read_coco
from grounding_dino.data.datasets.coco_json import load_coco, set_metadata
from grounding_dino.data.datasets.grit import load_grit
from grounding_dino.data.datasets.mdetr import holds_referring_expressions, load_mdetr
from grounding_dino.data.datasets.odvg import load_odvg
from grounding_dino.data.datasets.refexp_json import load_refexp
from grounding_dino.data.datasets.rows import PHRASES_EVALUATOR, TRAINING_ONLY, json_line_files
from grounding_dino.data.datasets.shards import first_row, is_grit, load_shards

from detectron2.data import DatasetCatalog, MetadataCatalog

_FORM = "NAME=annotations:image_folder (annotations: COCO or MDETR .json, ODVG or GRIT .jsonl, or .tar shards)"
_ROW_ENDINGS = (".jsonl", ".ndjson")
_ENDINGS = (".json", *_ROW_ENDINGS, ".tar")
_LOADERS: dict[str, Callable[[str, str, str], Sequence[dict[str, Any]]]] = {
    "coco": load_coco,
    "refexp": load_refexp,
    "mdetr": load_mdetr,
    "odvg": load_odvg,
    "grit": load_grit,
    "tar": load_shards,
}
_EVALUATORS = {
    **{"coco": "coco", "refexp": "refexp", "odvg": "coco"},  # ODVG's captions say otherwise when they are read
    **dict.fromkeys(("mdetr", "grit"), PHRASES_EVALUATOR),
    "tar": TRAINING_ONLY,
}
_TITLES = {
    "refexp": "referring expressions",
    "mdetr": "MDETR's phrase grounding",
    "odvg": "ODVG rows",
    "grit": "GRIT rows",
    "tar": "shards of ODVG or GRIT rows",
}
_ROWS = ("odvg", "grit")
_LARGE = 256 << 20  # bytes of rows that are not held in memory any more
_HEAD, _TAIL = 1 << 20, 1 << 16  # bytes that a file's format is recognised by


@dataclass(frozen=True)
class ExtraDataset:
    """An annotation file, or a folder of row files, and its picture folder, under a name for DATASETS."""

    name: str
    annotations: str
    image_root: str


def parse_dataset_argument(text: str) -> ExtraDataset:
    r"""Read `NAME=annotations:image_folder`; Windows drives (`C:\...`) may stand in both paths.

    Raises:
        ValueError: the text has another form.
    """
    name, equals, paths = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ValueError(f"the data set argument {text!r} names no data set; write {_FORM}")
    if any(character.isspace() or character in ",()" for character in name):
        raise ValueError(f"the data set name {name!r} in {text!r} has a space, comma or bracket; use letters and _")
    splits = [index for index, character in enumerate(paths) if character == ":" and not _is_drive(paths, index)]
    if len(splits) > 1:  # a colon inside a path: the annotations are the part with an ending
        splits = [index for index in splits if paths[:index].lower().endswith(_ENDINGS)][:1]
    if len(splits) != 1:
        raise ValueError(f"cannot tell annotations from picture folder in {text!r}; write {_FORM}")
    annotations, image_root = paths[: splits[0]].strip(), paths[splits[0] + 1 :].strip()
    if not annotations or not image_root:
        missing = "picture folder" if annotations else "annotation file"
        raise ValueError(f"the data set argument {text!r} has no {missing}; write {_FORM}")
    return ExtraDataset(name, annotations, image_root)


def _is_drive(paths: str, index: int) -> bool:
    r"""Whether the colon belongs to a drive letter at the start of a path, as in `C:\` and `C:/`."""
    letter_starts_path = index == 1 or (index >= 3 and paths[index - 2] == ":")
    return letter_starts_path and paths[index - 1].isalpha() and paths[index + 1 : index + 2] in ("\\", "/")


def register_extra_datasets(arguments: Iterable[str]) -> list[str]:
    """Register `--dataset` arguments (or `cfg.DATASETS.EXTRA`); an argument given again is no error.

    Returns:
        the names.

    Raises:
        ValueError: an argument has another form, or its name belongs to another data set.
    """
    names = []
    for text in arguments:
        extra = parse_dataset_argument(text)
        if not _is_registered(extra):
            if extra.name in DatasetCatalog:
                raise ValueError(f"there is a data set {extra.name!r} already; choose another name")
            load = functools.partial(load_extra, extra.annotations, extra.image_root, extra.name)
            DatasetCatalog.register(extra.name, load)
            MetadataCatalog.get(extra.name).set(image_root=extra.image_root, evaluator_type="coco")
        names.append(extra.name)
    return names


def _is_registered(extra: ExtraDataset) -> bool:
    function = DatasetCatalog[extra.name] if extra.name in DatasetCatalog else None
    return (
        isinstance(function, functools.partial)
        and function.func is load_extra
        and function.args[:2] == (extra.annotations, extra.image_root)
    )


def load_extra(annotations: str, image_root: str, dataset_name: str) -> Sequence[dict[str, Any]]:
    """The records of a file in whichever format it is; the metadata says how they are scored, if they can be.

    Rows of more than 256 MiB, and of tar files, stay on disk.

    Formats are told apart by :func:`annotation_format`, and MDETR's sentences and referring expressions by
    :func:`holds_referring_expressions`.

    Raises:
        FileNotFoundError: no such file, or no picture folder.
        ValueError: the file cannot be used; the message says which format it was taken for.
    """
    kind = annotation_format(annotations)
    if kind == "mdetr":
        kind = "refexp" if holds_referring_expressions(read_coco(annotations)) else "mdetr"
    set_metadata(dataset_name, evaluator_type=_EVALUATORS[kind])
    load = load_shards if kind in _ROWS and _is_large(annotations) else _LOADERS[kind]
    try:
        return load(annotations, image_root, dataset_name)
    except CocoFormatError:  # says so itself
        raise
    except ValueError as error:
        raise ValueError(f"{error} ({annotations} was taken for {_TITLES[kind]})") from error


def _is_large(path: str) -> bool:
    return sum(map(os.path.getsize, json_line_files(path))) > _LARGE


def annotation_format(path: str) -> str:
    """Which of coco, mdetr (also for our own referring expressions), odvg, grit and tar a file or folder is.

    Files of rows are known by their first row in order, whatever their ending is: mmdet's ODVG files end in .json. Tar
    files and patterns of several files are "tar" without a look inside.

    Raises:
        FileNotFoundError: no such file or folder.
    """
    if is_shards(path):
        return "tar"
    file = json_line_files(path)[0]
    row = first_row(file)
    if is_grit(row):
        return "grit"
    if "detection" in row or "grounding" in row:
        return "odvg"
    if os.path.isdir(path) or (file.lower().endswith(_ROW_ENDINGS) and "images" not in row):
        return "odvg"  # its first lines are broken, perhaps
    return "mdetr" if _mentions(file, b'"tokens_positive"', b'"expressions"') else "coco"


def is_shards(path: str) -> bool:
    """Whether a path means tar files, or by a pattern several files."""
    if os.path.exists(path):
        return path.lower().endswith(".tar") or (os.path.isdir(path) and bool(find_tars(path)))
    return path.lower().endswith(".tar") or any(character in path for character in "*{")


def find_tars(folder: str) -> list[str]:
    """The tar files in a folder."""
    return [name for name in os.listdir(folder) if name.lower().endswith(".tar")]


def _mentions(file: str, *keys: bytes) -> bool:
    """Whether a key stands at the beginning or the end of a file, where the lists of a large json begin and end."""
    with open(file, "rb") as stream:
        head = stream.read(_HEAD)
        stream.seek(max(0, os.path.getsize(file) - _TAIL))
        tail = stream.read()
    return any(key in part for key in keys for part in (head, tail))
