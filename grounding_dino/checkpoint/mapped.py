"""The memory of checkpoints that are mapped from their files (`torch.load(mmap=True)`)."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_MADV_DONTNEED = 4
_PART_BYTES = 64 << 20
_SMAPS = Path("/proc/self/smaps")
# A private mapping of a file, and what the kernel counts in it.
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ...p \S+ \S+ \S+ +(/.*)\n((?:\w+:.*\n)+)", re.MULTILINE)
_WRITTEN = re.compile(r"^(?:Anonymous|Swap): +[1-9]", re.MULTILINE)  # pages that are no longer the file's


def load_and_release(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """`model.load_state_dict(state, strict=False)`, letting go of the file `path` as its tensors are copied.

    Else a model would need twice its size while it is loaded.
    """
    mappings = mappings_of(path, state)
    copied = 0

    def count(module: nn.Module, _: Any) -> None:
        nonlocal copied
        copied += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
        if copied >= _PART_BYTES:
            release_pages(mappings)
            copied = 0

    hooks = [module.register_load_state_dict_post_hook(count) for module in model.modules()]
    try:
        model.load_state_dict(dict(state), strict=False)
    finally:
        for hook in hooks:
            hook.remove()
        release_pages(mappings)


def mappings_of(path: str, state: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Where (start, end) the file `path` is mapped for tensors of `state`, as long as these live.

    A mapping that somebody wrote into is left out: its changes are in memory alone. None on systems other than Linux.
    """
    if not sys.platform.startswith("linux") or not _SMAPS.exists() or not os.path.isfile(path):
        return []
    path = os.path.realpath(path)
    places = [tensor.data_ptr() for tensor in state.values() if tensor.device.type == "cpu"]
    unwritten = [
        (int(start, 16), int(end, 16))
        for start, end, file, counts in _MAPPING.findall(_SMAPS.read_text())
        if file == path and "Anonymous:" in counts and not _WRITTEN.search(counts)
    ]
    return [(start, end) for start, end in unwritten if any(start <= place < end for place in places)]


def release_pages(mappings: Iterable[tuple[int, int]]) -> None:
    """Take pages of files out of this process's memory; what is read again comes back from the file."""
    libc = ctypes.CDLL(None)
    for start, end in mappings:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
