"""Set-up of logging, messages that are not repeated, and small tables."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from typing import Any

from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_DATE_FORMAT = "%m/%d %H:%M:%S"


class _AbbreviatingFormatter(logging.Formatter):
    """Shows the package's abbreviated name and, where `color` is set, time and warnings in colour."""

    def __init__(self, name: str, abbrev_name: str, color: bool) -> None:
        stamp = "[%(asctime)s %(name)s]: "
        layout = (
            colored(stamp, "green", force_color=True) + "%(message)s" if color else stamp + "%(levelname)s %(message)s"
        )
        super().__init__(layout, datefmt=_DATE_FORMAT)
        self._name = name
        self._abbreviation = abbrev_name
        self._color = color

    def formatMessage(self, record: logging.LogRecord) -> str:
        original = record.name
        if original == self._name or original.startswith(self._name + "."):
            record.name = (self._abbreviation + original[len(self._name) :]).lstrip(".")
        text = super().formatMessage(record)
        record.name = original
        if self._color and record.levelno >= logging.WARNING:
            style = ["underline"] if record.levelno >= logging.ERROR else []
            text = colored(record.levelname, "red", attrs=["blink", *style], force_color=True) + " " + text
        return text


@functools.lru_cache  # a second call with the same arguments must not add the handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Make the logger `name` show messages on standard output (rank 0 only) and write them to a file.

    `output`: a file ending in .txt or .log, or a folder, in which log.txt is written; other ranks than 0 write to
    ``FILE.rankN``. `abbrev_name`: what log lines show in place of `name` ("d2" for detectron2).
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    if configure_stdout and distributed_rank == 0:
        console = logging.StreamHandler(stream=sys.stdout)
        console.setLevel(logging.DEBUG)
        console.setFormatter(_AbbreviatingFormatter(name, abbrev_name, color))
        logger.addHandler(console)
    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename = f"{filename}.rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        file_handler = logging.StreamHandler(_open_log(filename))
        file_handler.setLevel(logging.DEBUG)
        file_handler.setFormatter(_AbbreviatingFormatter(name, abbrev_name, color=False))
        logger.addHandler(file_handler)
    return logger


@functools.lru_cache  # loggers that write to the same file share the stream
def _open_log(filename: str) -> Any:
    # Remote files are slow to append to, so they are buffered more.
    buffering = 1 if "://" not in filename else 1024 * 1024
    stream = PathManager.open(filename, "a", buffering=buffering)
    atexit.register(stream.close)
    return stream


def _caller() -> tuple[str, tuple[Any, ...]]:
    """Module of the code that called into this file, and a key for the line it did so from."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "__main__")
    if module == "__main__":
        module = "detectron2"  # the name that setup_logger configures
    return module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


_COUNTS: Counter[Any] = Counter()
_TIMES: dict[Any, float] = {}


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log `msg` the first `n` times only.

    `name`: the logger's (default: the calling module's). `key`: what makes two calls the same, "caller" (the line
    of code), "message", or both.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    if not keys or not set(keys) <= {"caller", "message"}:
        raise ValueError(f"log_first_n got key {key!r}; it takes 'caller', 'message' or both")
    module, line = _caller()
    identity = (*(line if "caller" in keys else ()), *((msg,) if "message" in keys else ()))
    _COUNTS[identity] += 1
    if _COUNTS[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log `msg` at the first of every `n` calls from a line of code."""
    module, line = _caller()
    identity = ("every", *line)
    _COUNTS[identity] += 1
    if n == 1 or _COUNTS[identity] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log `msg` unless the same line of code logged less than `n` seconds ago."""
    module, line = _caller()
    now = time.monotonic()
    last = _TIMES.get(line)
    if last is None or now - last >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _TIMES[line] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """Format a dict of a few items as a table of one row, names above values."""
    names, values = tuple(zip(*small_dict.items())) if small_dict else ((), ())
    return str(tabulate([values], headers=names, tablefmt="pipe", floatfmt=".3f", stralign="center", numalign="center"))
