"""The memory of checkpoints that are mapped from their files (`torch.load(mmap=True)`)."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_MADV_DONTNEED = 4
_PART_BYTES = 64 << 20
_MAPS = Path("/proc/self/maps")


def load_and_release(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """`model.load_state_dict(state, strict=False)`, letting go of the file `path` as its tensors are copied.

    Else a model would need twice its size while it is loaded. Nobody may have written into the tensors of the file.
    """
    copied = 0

    def count(module: nn.Module, _: Any) -> None:
        nonlocal copied
        copied += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
        if copied >= _PART_BYTES:
            release_pages(path)
            copied = 0

    hooks = [module.register_load_state_dict_post_hook(count) for module in model.modules()]
    try:
        model.load_state_dict(dict(state), strict=False)
    finally:
        for hook in hooks:
            hook.remove()
        release_pages(path)


def release_pages(path: str) -> None:
    """Take the pages of the file `path` out of this process's memory; what is read again comes back from the file.

    Without effect on systems other than Linux.
    """
    if not sys.platform.startswith("linux") or not _MAPS.exists() or not os.path.isfile(path):
        return
    madvise = ctypes.CDLL(None).madvise
    path = os.path.realpath(path)
    for line in _MAPS.read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ...p \S+ \S+ \S+ +(/.*)", line)
        if found and found[3] == path:
            start, end = int(found[1], 16), int(found[2], 16)
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
