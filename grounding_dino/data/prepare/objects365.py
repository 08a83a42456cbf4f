"""Objects365, both versions: unpacks the downloads and brings version 2's patches side by side."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all

SPLITS = ("train", "val")


def gather_patches(folder: Path) -> int:
    """Move `patch0`, `patch1`, ... from wherever they are below `folder` (`images/v1/patch0`) into it; their number.

    Raises:
        FileExistsError: a patch is there twice.
    """
    deeper = [
        path
        for path in sorted(folder.rglob("patch*"))
        if path.is_dir() and re.fullmatch(r"patch\d+", path.name) and path.parent != folder
    ]
    for path in deeper:
        target = folder / path.name
        if target.exists():
            raise FileExistsError(f"{path} and {target} are the same patch; put the pictures of one into the other")
        os.replace(path, target)
    return len(deeper)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_objects365.py`."""
    parser = get_parser("Unpack and check Objects365 v1 in objects365v1/, or v2 in objects365v2/.")
    parser.add_argument("--version", type=int, choices=(1, 2), default=2)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_objects365.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    folder = options.root / f"objects365v{options.version}"
    try:
        unpack_all(folder / "annotations", folder / "annotations", options.quiet)
        for split in SPLITS:
            unpack_all(folder / split, folder / split, options.quiet)
            if options.version == 2:
                gather_patches(folder / split)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, [f"objects365_v{options.version}_{split}" for split in SPLITS])
