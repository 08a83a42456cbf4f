"""The options of videos: what they are followed with, and what does not go together."""

from __future__ import annotations

import argparse

MOST_SECONDS = 3600.0


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add `track` and `track_buffer`."""
    options = parser.add_argument_group("of a video or webcam")
    options.add_argument(
        "--track",
        action="store_true",
        help="follow objects from frame to frame: each keeps its number, colour and category (pip install trackers)",
    )
    options.add_argument(
        "--track-buffer",
        type=seconds,
        default=1.0,
        metavar="S",
        help="seconds for which an object may be out of sight and keep its number (default: 1)",
    )


def video_problem(args: argparse.Namespace) -> str:
    """Why the options of videos do not go with the others; "" if they do.

    Raises:
        ValueError: the package that follows objects is missing.
    """
    if not args.track:
        return ""
    if args.input:
        return "--track follows objects from frame to frame: it goes with --video-input or --webcam, not with --input"
    from grounding_dino.model_zoo import load_cfg

    if load_cfg(args.config_file, args.opts).TEST.PANOPTIC_ON:
        return "--track follows boxes, not panoptic segments: add --opts TEST.PANOPTIC_ON False"
    from grounding_dino.video.tracking import tracker_class

    tracker_class()
    return ""


def seconds(text: str) -> float:
    """A time in seconds from 0 on."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; give one such as 1.5") from None
    if not 0.0 <= value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and {MOST_SECONDS:.0f} seconds")
    return value
