"""Kinds of values on the command lines, refused in words; and by which name a command is called."""

from __future__ import annotations

import argparse
import sys

ENTRY_POINT = "grounding-dino"
INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it


def program(script: str) -> str:
    """How the running command is called: "grounding-dino train" by the entry point, else the name of its `script`."""
    return sys.argv[0] if sys.argv[0].startswith(f"{ENTRY_POINT} ") else script


def share(text: str) -> float:
    """A number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; give one in [0, 1], such as 0.35") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} does not lie in [0, 1]")
    return value


def count(text: str) -> int:
    """A whole number from 1 on."""
    return _whole_number(text, 1)


def count_or_none(text: str) -> int:
    """A whole number from 0 on."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give {least} or more") from None
    if value < least:
        wrong = "not a positive number" if least else "negative"
        raise argparse.ArgumentTypeError(f"{text} is {wrong}; give {least} or more")
    return value


def picture_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, written 800x1333."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width in pixels, such as 800x1200")
    return int(height), int(width)
