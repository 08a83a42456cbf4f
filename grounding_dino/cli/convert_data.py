"""`tools/convert_data.py`: annotation files from one format into another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from grounding_dino.cli.arguments import program
from grounding_dino.data.convert_formats import FORMATS, NAME_MODES


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog=program("convert_data.py"),
        description="Convert annotations between COCO, ODVG (JSON lines), MDETR and referring expressions (refexp). "
        "Pictures stay where they are. What a format cannot hold is counted and said.",
        epilog="example: %(prog)s --from coco --to odvg annotations/train.json train_odvg.jsonl",
    )
    parser.add_argument("input", metavar="INPUT", help="annotation file; of ODVG also a folder of .jsonl files")
    parser.add_argument("output", metavar="OUTPUT", help="file to write; of ODVG its label map is written beside it")
    parser.add_argument("--from", dest="from_format", choices=FORMATS, required=True, help="the format of INPUT")
    parser.add_argument("--to", dest="to_format", choices=FORMATS, required=True, help="the format of OUTPUT")
    parser.add_argument("--images", metavar="FOLDER", help="leave out pictures that are not in this folder")
    parser.add_argument("--label-map", metavar="FILE", help="label map of ODVG rows; default: the one beside them")
    parser.add_argument(
        "--names",
        choices=NAME_MODES,
        help="class names that MDETR's sentences list: those of a picture's objects, all, or (auto) all if they fit "
        "into one sentence of 256 tokens",
    )
    parser.add_argument("--strict", action="store_true", help="stop at entries that are not in order")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    from grounding_dino.data.convert import convert

    if arguments.names is not None and arguments.to_format != "mdetr":
        parser.error(f"--names says what the sentences of MDETR list; {arguments.to_format} has no such sentences")
    try:
        result = convert(
            arguments.input,
            arguments.output,
            arguments.from_format,
            arguments.to_format,
            images=arguments.images,
            label_map=arguments.label_map,
            names=arguments.names or "auto",
            strict=arguments.strict,
            progress=not arguments.quiet,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{arguments.input} ({arguments.from_format}) -> {arguments.output} ({arguments.to_format}): {result.entries}"
    )
    for what, count in result.lost.items():
        print(f"  not converted: {count} {what}")
    return 0
