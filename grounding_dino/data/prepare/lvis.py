"""LVIS v1: unpacks the annotations and takes minival out of val."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grounding_dino.data.datasets.coco_cleaning import read_coco
from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.register_lvis import HINT
from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all, write_json


def make_minival(root: Path) -> int:
    """Write `lvis_v1_minival.json`, the pictures of LVIS's val that are in COCO's val2017; their number.

    LVIS's val holds pictures of COCO's training set too, which models that trained on COCO have seen.

    Raises:
        FileNotFoundError: LVIS's val is not there.
        ValueError: it has no picture of val2017.
    """
    source = require(root / "lvis" / "lvis_v1_val.json", HINT)
    content = read_coco(str(source))
    images = [image for image in content["images"] if "/val2017/" in image.get("coco_url", "")]
    if not images:
        raise ValueError(f"{source} has no picture of COCO's val2017 ('coco_url'); is it LVIS v1?")
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    write_json(source.with_name("lvis_v1_minival.json"), {**content, "images": images, "annotations": annotations})
    return len(images)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_lvis.py`."""
    return get_parser("Unpack LVIS v1 in lvis/, take minival out of val, and check them; pictures are COCO's.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_lvis.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    try:
        unpack_all(options.root / "lvis", options.root / "lvis", options.quiet)
        print(f"minival has {make_minival(options.root)} pictures")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, ["lvis_v1_train", "lvis_v1_val", "lvis_v1_minival"])
