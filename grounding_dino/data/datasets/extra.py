"""Data sets named on the command line: `--dataset NAME=annotations.json:image_folder`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from grounding_dino.data.datasets.coco_json import load_coco, register_coco

from detectron2.data import DatasetCatalog

_FORM = "NAME=annotations.json:image_folder"


@dataclass(frozen=True)
class ExtraDataset:
    """A COCO json and its picture folder, under a name for DATASETS.TRAIN and DATASETS.TEST."""

    name: str
    json_file: str
    image_root: str


def parse_dataset_argument(text: str) -> ExtraDataset:
    r"""Read `NAME=annotations.json:image_folder`; Windows drives (`C:\...`) may stand in both paths.

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
    if len(splits) > 1:  # a colon inside a path: the annotations are the part that ends in .json
        splits = [index for index in splits if paths[:index].lower().endswith(".json")][:1]
    if len(splits) != 1:
        raise ValueError(f"cannot tell annotations from picture folder in {text!r}; write {_FORM}")
    json_file, image_root = paths[: splits[0]].strip(), paths[splits[0] + 1 :].strip()
    if not json_file or not image_root:
        missing = "picture folder" if json_file else "annotation file"
        raise ValueError(f"the data set argument {text!r} has no {missing}; write {_FORM}")
    return ExtraDataset(name, json_file, image_root)


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
            register_coco(extra.name, extra.json_file, extra.image_root)
        names.append(extra.name)
    return names


def _is_registered(extra: ExtraDataset) -> bool:
    function = DatasetCatalog[extra.name] if extra.name in DatasetCatalog else None
    return (
        isinstance(function, functools.partial)
        and function.func is load_coco
        and function.args[:2] == (extra.json_file, extra.image_root)
    )
