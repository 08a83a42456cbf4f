"""Errors of a command: those that a user can mend as one sentence, all others with their traceback."""

from __future__ import annotations

import copy
import logging
import os
import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_LOGGERS = ("grounding_dino", "detectron2", "fvcore")  # whose messages a run shows
_IN_WORDS = (ValueError, ImportError)
_BROKEN_CONNECTION = ("gloo/transport", "Connection closed by peer", "connection was reset", "NCCL communicator was")


def explains_itself(error: BaseException) -> bool:
    """Whether the message of an error is written for the user.

    That are errors of this package about a value, a file or numbers that are not finite, and the system's about files.
    The same types out of a library, where their text means nothing to a user, do not count.
    """
    if isinstance(error, (OSError, FloatingPointError)):
        return True
    return isinstance(error, _IN_WORDS) and _raised_in(error).startswith(_PACKAGE)


def lost_the_others(error: BaseException) -> bool:
    """Whether an error only says that another process of the job has ended, or does not answer."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and isinstance(error, getattr(distributed, "DistError", ())):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _BROKEN_CONNECTION)


def _raised_in(error: BaseException) -> str:
    """The file of the innermost frame."""
    trace, file = error.__traceback__, ""
    while trace is not None:
        file, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    return file


def log_in_full(error: BaseException, message: str) -> None:
    """Write an error with its traceback into the log files of the run, and not to the screen."""
    record = logging.LogRecord(
        "grounding_dino", logging.ERROR, __file__, 0, message, None, (type(error), error, error.__traceback__)
    )
    for handler in logging.getLogger("grounding_dino").handlers:
        if not _is_console(handler):
            handler.handle(record)


def keep_tracebacks_off_the_screen() -> None:
    """Show the message alone where an error that explains itself is logged; the log files keep its traceback.

    To be called once the loggers are set up.
    """
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if _is_console(handler) and not isinstance(handler.formatter, _WithoutTraceback):
                handler.setFormatter(_WithoutTraceback(handler.formatter or logging.Formatter()))


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)


class _WithoutTraceback(logging.Formatter):
    """Formats as another formatter does, without the traceback of errors that say in words what is wrong."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not (explains_itself(error) or lost_the_others(error)):
            return self._inner.format(record)
        # Formatting keeps the traceback's text in the record, from where the log file's handler would take it.
        shown = copy.copy(record)
        shown.exc_info = shown.exc_text = None
        return self._inner.format(shown)
