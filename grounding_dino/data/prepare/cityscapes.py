"""Cityscapes: unpacks it, and makes from label and instance maps what cityscapesscripts makes, and a COCO json."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.register_cityscapes import (
    CLASSES,
    HINT,
    PICTURE,
    SPLITS,
    TRAIN_IDS,
    instance_json,
)
from grounding_dino.data.datasets.segmentation_classes import IGNORE_LABEL
from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all
from grounding_dino.data.prepare.maps import (
    add_workers_argument,
    describe_segments,
    for_each,
    instance_of,
    write_annotations,
    write_semantic_map,
    write_whole,
)
from grounding_dino.data.segmentation_maps import read_semantic_map, write_panoptic_map

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]

_INDEX = {c.number: i for i, c in enumerate(CLASSES)}
_LARGEST_LABEL = 33  # of the benchmark's labels, the ignored ones included
_STEP = 1000  # instance maps hold label * 1000 + number; a label alone is stuff, or a crowd of things
_LABELS, _INSTANCES, _PANOPTIC = "_gtFine_labelIds.png", "_gtFine_instanceIds.png", "_gtFine_panoptic.png"


def to_train_ids(labels: NDArray[np.int64], path: Path) -> NDArray[np.uint8]:
    """Label ids as the 19 classes, others 255.

    Raises:
        ValueError: there is an id that Cityscapes does not have.
    """
    if labels.max(initial=0) > _LARGEST_LABEL or labels.min(initial=0) < 0:
        raise ValueError(
            f"{path} has labels from {labels.min()} to {labels.max()}; Cityscapes' are 0 to {_LARGEST_LABEL}"
        )
    table = np.full(_LARGEST_LABEL + 1, IGNORE_LABEL, dtype=np.uint8)
    table[list(_INDEX)] = list(_INDEX.values())
    return table[labels]


def prepare_picture(source: Path, target: Path) -> tuple[Record, list[Record], Record]:
    """Write train ids beside the label ids `source`, and a panoptic map into `target`.

    Segment ids are the numbers of the instance map, as cityscapesscripts has them. Things without a number of their own
    are crowds.

    Returns:
        the picture's entry with a name below the split's folder, its instances, its panoptic annotation.

    Raises:
        ValueError: a map is not as published.
    """
    stem = source.name.removesuffix(_LABELS)
    write_semantic_map(source.with_name(stem + TRAIN_IDS), to_train_ids(read_semantic_map(source), source))
    path = source.with_name(stem + _INSTANCES)
    ids = read_semantic_map(path)
    labels = np.where(ids < _STEP, ids, ids // _STEP)
    ids = np.where(to_train_ids(labels, path) == IGNORE_LABEL, 0, ids)
    write_whole(target / (stem + _PANOPTIC), functools.partial(write_panoptic_map, ids=ids))
    segments, objects = [], []
    for number, facts in describe_segments(ids).items():
        label = number if number < _STEP else number // _STEP
        is_thing = CLASSES[_INDEX[label]].is_thing
        facts = {"category_id": label, "iscrowd": int(is_thing and number < _STEP), **facts}
        segments.append({"id": number, **facts})
        if is_thing:
            objects.append(instance_of(ids == number, facts))
    height, width = ids.shape
    image = {"id": stem, "file_name": f"{source.parent.name}/{stem}{PICTURE}", "height": height, "width": width}
    return image, objects, {"image_id": stem, "file_name": stem + _PANOPTIC, "segments_info": segments}


def prepare_split(root: Path, split: str, workers: int, quiet: bool) -> list[str]:
    """Make what the sets of a split need; their names.

    Raises:
        FileNotFoundError: there are no label maps, or no instance map beside one.
        ValueError: a map is not as published.
    """
    folder = require(root / "cityscapes" / "gtFine" / split, HINT)
    sources = sorted(folder.glob(f"*/*{_LABELS}"))
    if not sources:
        raise FileNotFoundError(f"{folder} has no <city>/*{_LABELS}; {HINT}")
    name = f"cityscapes_panoptic_{split}"
    convert = functools.partial(prepare_picture, target=folder.parent / name)
    made = for_each(convert, sources, f"maps, {split}", workers, quiet)
    write_annotations(made, CLASSES, root / instance_json(split), folder.parent / f"{name}.json")
    return [f"cityscapes_fine_{kind}_{split}" for kind in ("sem_seg", "instance", "panoptic")]


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_cityscapes.py`."""
    parser = get_parser("Unpack Cityscapes in cityscapes/, make its maps and json files, and check them.")
    add_workers_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_cityscapes.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    folder = options.root / "cityscapes"
    try:
        unpack_all(folder, folder, options.quiet)
        names = [n for split in SPLITS for n in prepare_split(options.root, split, options.workers, options.quiet)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, names)
