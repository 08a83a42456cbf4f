"""COCO 2017: unpacks the downloads, checks them, and leaves out pictures of the referring-expression benchmarks."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from grounding_dino.data.datasets.coco_cleaning import read_coco
from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.register_coco_sets import COCO_HINT
from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all, write_json

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


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_coco.py`."""
    parser = get_parser("Unpack and check COCO 2017 in coco/.")
    parser.add_argument(
        "--without-refexp",
        action="store_true",
        help="also write annotations without the pictures on which referring expressions are evaluated",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_coco.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    names = ["coco_2017_train", "coco_2017_val"]
    try:
        unpack_all(options.root / "coco", options.root / "coco", options.quiet)
        if options.without_refexp:
            left, out = without_refexp(options.root)
            print(f"{out} pictures taken out of train2017, {left} left")
            names.append("coco_2017_train_norefval")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, names)
