"""Memory of the CPU: what a forward pass frees is kept for the next one."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

# Whoever sets one of these has chosen an allocator, or its settings.
_CHOSEN = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep large blocks for the next allocation, once a process; whether it does.

    By default malloc maps blocks of megabytes anew each time and hands them back when they are freed, so every
    activation is paid for with page faults: a third to a half of a forward pass on a virtual machine, and, where its
    threshold moves, gigabytes of fragments. Kept blocks are the process's until it ends, as in PyTorch's allocator for
    GPUs; the peak gets smaller, not larger. Nothing is changed where another allocator is preloaded, where the
    environment sets malloc up, on systems without glibc, or with GROUNDING_DINO_ALLOCATOR=system.

    Raises:
        ValueError: GROUNDING_DINO_ALLOCATOR is something else.
    """
    choice = os.environ.get("GROUNDING_DINO_ALLOCATOR", "")
    if choice not in ("", "system"):
        raise ValueError(
            f"GROUNDING_DINO_ALLOCATOR is {choice!r}; leave it unset to keep freed memory, or set it to 'system'."
        )
    if choice or not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all(mallopt(option, value) for option, value in settings)
