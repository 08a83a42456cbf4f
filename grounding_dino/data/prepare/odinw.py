"""ODinW: unpacks the archives of the 35 data sets and checks them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from grounding_dino.data.datasets.groups import dataset_groups
from grounding_dino.data.datasets.register_odinw import FOLDERS
from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_odinw.py`."""
    parser = get_parser("Unpack and check the data sets of ODinW in odinw/.")
    parser.add_argument("--benchmark", choices=("odinw13", "odinw35"), default="odinw35", help="which sets are checked")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_odinw.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    try:
        unpack_all(options.root / "odinw", options.root / "odinw", options.quiet)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, [n for split in FOLDERS for n in dataset_groups()[f"{options.benchmark}_{split}"]])
