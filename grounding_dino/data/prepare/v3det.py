"""V3Det: unpacks the downloads and checks them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all


def build_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_v3det.py`."""
    return get_parser("Unpack and check V3Det in V3Det/.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_v3det.py`."""
    parser = build_parser()
    options = parse(parser, arguments)
    try:
        unpack_all(options.root / "V3Det", options.root / "V3Det", options.quiet)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, ["v3det_train", "v3det_val"])
