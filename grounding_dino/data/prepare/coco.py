"""COCO 2017: unpacks and checks the downloads, makes semantic maps, leaves out pictures of referring expressions."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import read_coco
from grounding_dino.data.datasets.panoptic_json import load_panoptic
from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.register_coco_panoptic import CLASSES, HINT, sem_seg_root
from grounding_dino.data.datasets.register_coco_sets import COCO_HINT
from grounding_dino.data.datasets.segmentation_classes import IGNORE_LABEL, panoptic_metadata
from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all, write_json
from grounding_dino.data.prepare.maps import add_workers_argument, for_each, write_semantic_map
from grounding_dino.data.segmentation_maps import read_panoptic_map

import numpy as np

# The splits of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO that are evaluated, in MDETR's layout.
REFEXP_FILES = ("final_refexp_val.json", "finetune_*refcoco*_val.json", "finetune_*refcoco*_test*.json")
REFEXP_HINT = "it comes with the referring expressions, see datasets/README.md"


def without_refexp(root: Path) -> tuple[int, int]:
    """Write `instances_train2017_norefval.json`: train2017 without the pictures that those benchmarks evaluate on.

    Pictures keep their numbers from COCO 2014 to 2017, and 2017's training set takes in both of 2014's.

    Returns:
        pictures left and pictures taken out.

    Raises:
        FileNotFoundError: no annotations of COCO or of referring expressions.
    """
    annotations = root / "coco" / "annotations"
    source = require(annotations / "instances_train2017.json", COCO_HINT)
    folder = require(root / "coco" / "mdetr_annotations", REFEXP_HINT)
    files = sorted({path for pattern in REFEXP_FILES for path in folder.glob(pattern)})
    if not files:
        raise FileNotFoundError(f"{folder} has none of {', '.join(REFEXP_FILES)}; {REFEXP_HINT}")
    evaluated = {_number(image["file_name"]) for path in files for image in read_coco(str(path))["images"]}
    content = read_coco(str(source))
    kept = [image for image in content["images"] if image["id"] not in evaluated]
    ids = {image["id"] for image in kept}
    left = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    write_json(annotations / "instances_train2017_norefval.json", {**content, "images": kept, "annotations": left})
    return len(kept), len(content["images"]) - len(kept)


def _number(file_name: str) -> int:
    """COCO_train2014_000000098304.jpg -> 98304, as 000000098304.jpg of 2017."""
    found = re.search(r"(\d+)\.[a-z]+$", file_name)
    if found is None:
        raise ValueError(f"the picture name {file_name!r} does not end in COCO's number")
    return int(found.group(1))


def to_semantic(record: dict[str, Any], target: Path) -> None:
    """Write the class of each pixel, 255 for none, from a picture's panoptic map.

    Args:
        record: of a panoptic set.

    Raises:
        ValueError: the ids of the map are not those of the record.
    """
    source, segments = Path(record["pan_seg_file_name"]), record["segments_info"]
    ids = read_panoptic_map(source, [segment["id"] for segment in segments])
    known = np.array([0, *(segment["id"] for segment in segments)])
    classes = np.array([IGNORE_LABEL, *(segment["category_id"] for segment in segments)], dtype=np.uint8)
    order = np.argsort(known)
    write_semantic_map(target / source.name, classes[order][np.searchsorted(known, ids, sorter=order)])


def make_semantic_maps(root: Path, workers: int, quiet: bool) -> list[str]:
    """Write `panoptic_semseg_*`: the panoptic maps with the classes of pixels, of the splits that are there.

    Returns:
        the names of the sets that can be used now.

    Raises:
        FileNotFoundError: no split is there, or one is without its panoptic maps.
        ValueError: a json or a map cannot be used.
    """
    jsons = {split: root / "coco" / "annotations" / f"panoptic_{split}2017.json" for split in ("train", "val")}
    found = [split for split, path in jsons.items() if path.is_file()] or ["val"]
    for split in found:
        paths = (jsons[split], root / "coco" / f"{split}2017", root / "coco" / f"panoptic_{split}2017")
        json_file, pictures, maps = (str(require(path, HINT)) for path in paths)
        records = load_panoptic(json_file, pictures, maps, panoptic_metadata(CLASSES))
        convert = functools.partial(to_semantic, target=root / sem_seg_root(split))
        for_each(convert, records, f"semantic maps, {split}", workers, quiet)
    return [f"coco_2017_{split}_panoptic_with_sem_seg" for split in found]


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_coco.py`."""
    parser = get_parser("Unpack and check COCO 2017 in coco/.")
    parser.add_argument(
        "--without-refexp",
        action="store_true",
        help="also write annotations without the pictures on which referring expressions are evaluated",
    )
    parser.add_argument("--panoptic", action="store_true", help="also make semantic maps from the panoptic ones")
    add_workers_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_coco.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    names = ["coco_2017_train", "coco_2017_val"]
    try:
        while unpack_all(options.root / "coco", options.root / "coco", options.quiet):
            pass  # there are archives in the panoptic one
        if options.without_refexp:
            left, out = without_refexp(options.root)
            print(f"{out} pictures taken out of train2017, {left} left")
            names.append("coco_2017_train_norefval")
        if options.panoptic:
            names += make_semantic_maps(options.root, options.workers, options.quiet)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, names)
