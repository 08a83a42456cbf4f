"""The allocator's settings: in processes of their own, since they last as long as the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of Linux")

# Memory that is mapped for one large block, and what is left of it when the block is gone, in MiB.
PROGRAM = """
import re, sys
import torch
from grounding_dino.ops.allocator import keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

changed = keep_freed_memory() if "change" in sys.argv else None
before = resident()
block = torch.ones(64 << 20)
del block
print(changed, resident() - before)
"""
NAMES = ("GLIBC_TUNABLES", "LD_PRELOAD", "GROUNDING_DINO_ALLOCATOR")


def run(*arguments: str, **variables: str) -> tuple[str, int]:
    environment = {k: v for k, v in os.environ.items() if k not in NAMES and not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env={**environment, **variables}
    )
    assert done.returncode == 0, done.stderr
    changed, left = done.stdout.split()
    return changed, int(left)


def test_freed_block_is_kept() -> None:
    assert run()[1] < 32
    changed, left = run("change")
    assert changed == "True"
    assert left >= 256


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_=131072", "GROUNDING_DINO_ALLOCATOR=system"])
def test_users_choice_stays(variable: str) -> None:
    name, value = variable.split("=")
    changed, left = run("change", **{name: value})
    assert changed == "False"
    assert left < 32


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from grounding_dino.ops.allocator import keep_freed_memory

    monkeypatch.setenv("GROUNDING_DINO_ALLOCATOR", "jemalloc")
    with pytest.raises(ValueError, match="'jemalloc'; leave it unset"):
        keep_freed_memory.__wrapped__()
