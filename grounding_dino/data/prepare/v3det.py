"""V3Det: unpacks the downloads and checks them."""

from __future__ import annotations

from collections.abc import Sequence

from grounding_dino.data.prepare.files import finish, get_parser, parse, unpack_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `datasets/prepare_v3det.py`."""
    parser = get_parser("Unpack and check V3Det in V3Det/.")
    options = parse(parser, arguments)
    try:
        unpack_all(options.root / "V3Det", options.root / "V3Det", options.quiet)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return finish(options, ["v3det_train", "v3det_val"])
