"""The options that decide which detections count, the same words for all commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from grounding_dino.cli.arguments import share

if TYPE_CHECKING:
    from grounding_dino.thresholds import CategoryThresholds


def add_choice_options(parser: argparse.ArgumentParser) -> None:
    """Add thresholds and names that are not wanted.

    `confidence_threshold` is the predictor's `box_threshold`: the number of --confidence-threshold, or what the file of
    --thresholds holds. `not_wanted` is a list of names, or None.
    """
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument(
        "--confidence-threshold",
        type=share,
        default=0.35,
        metavar="X",
        help="least score of a detection; it is not of segments (default: 0.35)",
    )
    scores.add_argument(
        "--thresholds",
        type=thresholds_file,
        dest="confidence_threshold",
        metavar="FILE",
        help="instead, a least score for each category, as tools/calibrate_thresholds.py writes them",
    )
    parser.add_argument(
        "--text-threshold",
        type=share,
        default=0.25,
        metavar="X",
        help="least score of a caption's word (default: 0.25)",
    )
    parser.add_argument(
        "--not-wanted",
        nargs="+",
        metavar="NAME",
        help="names that compete with the categories for boxes, and are dropped; of a model of fixed classes, some of "
        "its own",
    )


def thresholds_file(path: str) -> CategoryThresholds:
    """The thresholds by category that a file holds."""
    from grounding_dino.thresholds import CategoryThresholds

    try:
        return CategoryThresholds.load(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
