"""The peak memory of a process is its own."""

from __future__ import annotations

import subprocess
import sys

from grounding_dino.engine import process_memory

LARGE = 300 * 2**20  # bytes; a Python without imports takes about 10 MB
CHILD = f"import runpy; print(runpy.run_path({process_memory.__file__!r})['peak_resident_bytes']())"
PARENT = f"""
import subprocess, sys
held = bytearray({LARGE})
held[::4096] = b"x" * len(held[::4096])
{CHILD}
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


def test_a_program_does_not_inherit_the_peak_of_what_started_it() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    child, parent = sorted(map(int, done.stdout.split()))
    assert 0 < child < LARGE / 2 and parent > LARGE
