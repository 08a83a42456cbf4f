"""ADE20K: unpacks it, makes semantic maps from 0, and from instance maps a COCO json and the panoptic format."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.register_ade20k import CLASSES, HINT, ROOT, SPLITS, instance_json
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
from grounding_dino.data.segmentation_maps import read_panoptic_map, read_semantic_map, write_panoptic_map

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]

_THINGS = [c.number for c in CLASSES if c.is_thing]  # instance maps count them from 1
_STEP = 1000  # a segment's id is its class, counted from 1, times this and the number of its instance (below 256)


def to_semantic(labels: NDArray[np.int64], path: Path) -> NDArray[np.uint8]:
    """Published labels (0 none, 1 to 150) as classes from 0, none 255.

    Raises:
        ValueError: there is another label.
    """
    if labels.max(initial=0) > len(CLASSES):
        raise ValueError(f"{path} has the label {labels.max()}; ADE20K's labels are 0 to {len(CLASSES)}")
    return np.where(labels == 0, IGNORE_LABEL, labels - 1).astype(np.uint8)


def read_instances(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The class (an index into CLASSES) and the number of the instance of each pixel (H, W); number 0 is none.

    Published maps have the thing, counted from 1, in red, and the number of the instance in the picture in green.

    Raises:
        ValueError: there is another thing, or an instance of two things.
    """
    codes = read_panoptic_map(path)
    things, numbers = codes % 256, codes // 256 % 256
    pairs = np.unique((numbers * 256 + things)[numbers > 0])
    wrong = [int(pair) for pair in pairs if not 1 <= pair % 256 <= len(_THINGS)]
    if wrong:
        raise ValueError(f"{path} has an instance of the thing {wrong[0] % 256}; there are 1 to {len(_THINGS)}")
    owners, counts = np.unique(pairs // 256, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"the instance {owners[counts > 1][0]} of {path} has pixels of several things")
    classes = np.array([0, *_THINGS] + [0] * (255 - len(_THINGS)))[things]
    return classes, numbers


def prepare_semantic(source: Path, target: Path) -> None:
    """Write the semantic map of a picture."""
    write_semantic_map(target / source.name, to_semantic(read_semantic_map(source), source))


def prepare_segments(source: Path, instances: Path, target: Path) -> tuple[Record, list[Record], Record]:
    """Write the panoptic map of a picture; returns its entry, its instances and its panoptic annotation.

    Stuff is taken from the semantic map `source`, things from the instance map of the same name, which lies over it, so
    that pixels of a thing that belong to no instance have no segment.
    """
    labels = read_semantic_map(source)
    classes, numbers = read_instances(instances / source.name)
    if labels.shape != numbers.shape:
        raise ValueError(f"{source} is {labels.shape} and {instances / source.name} {numbers.shape}; sizes must agree")
    stuff = np.isin(labels, [c.number + 1 for c in CLASSES if not c.is_thing])
    ids = np.where(numbers > 0, (classes + 1) * _STEP + numbers, np.where(stuff, labels * _STEP, 0))
    write_whole(target / source.name, functools.partial(write_panoptic_map, ids=ids))
    segments = [
        {"id": number, "category_id": number // _STEP - 1, "iscrowd": 0, **facts}
        for number, facts in describe_segments(ids).items()
    ]
    objects = [
        instance_of(ids == segment["id"], {key: value for key, value in segment.items() if key != "id"})
        for segment in segments
        if CLASSES[segment["category_id"]].is_thing
    ]
    height, width = ids.shape
    image = {"id": source.stem, "file_name": f"{source.stem}.jpg", "height": height, "width": width}
    return image, objects, {"image_id": source.stem, "file_name": source.name, "segments_info": segments}


def prepare_split(data_root: Path, split: str, workers: int, quiet: bool) -> list[str]:
    """Make what the sets of a split need; the names of the sets that can be used now.

    Raises:
        FileNotFoundError: there are no annotations.
        ValueError: a map is not as published.
    """
    folder = SPLITS[split]
    root = require(data_root / ROOT, HINT)
    labels = require(root / "annotations" / folder, HINT)
    sources = sorted(labels.glob("*.png"))
    if not sources:
        raise FileNotFoundError(f"{labels} has no label map (*.png); {HINT}")
    target = root / "annotations_detectron2" / folder
    for_each(functools.partial(prepare_semantic, target=target), sources, f"semantic maps, {split}", workers, quiet)
    instances = root / "annotations_instance" / folder
    if not instances.is_dir():
        print(f"there is no {instances}: no instances and no panoptic maps are made of {split}")
        return [f"ade20k_sem_seg_{split}"]
    convert = functools.partial(prepare_segments, instances=instances, target=root / f"ade20k_panoptic_{split}")
    made = for_each(convert, sources, f"instances and panoptic maps, {split}", workers, quiet)
    write_annotations(made, CLASSES, data_root / instance_json(split), root / f"ade20k_panoptic_{split}.json")
    return [f"ade20k_{kind}_{split}" for kind in ("sem_seg", "instance", "panoptic")]


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_ade20k.py`."""
    parser = get_parser(f"Unpack ADE20K in {ROOT}/, make its maps and json files, and check them.")
    add_workers_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_ade20k.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    folder = options.root / ROOT
    try:
        unpack_all(folder, options.root, options.quiet, f"{ROOT}*")  # has the folder's name inside
        unpack_all(folder, folder, options.quiet, "annotations_instance*")
        names = [n for split in SPLITS for n in prepare_split(options.root, split, options.workers, options.quiet)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, names)
