"""What processes that work for another one have in common."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits. Processes started meanwhile inherit this, until they say otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(exitcode: int | None) -> str:
    """What follows "the process was ended" in a sentence."""
    if exitcode is not None and exitcode < 0:
        return f"by the signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"with the exit code {exitcode}"
