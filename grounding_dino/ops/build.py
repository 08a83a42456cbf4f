"""Build the native kernels ahead of first use: `python -m grounding_dino.ops.build`."""

from __future__ import annotations

import sys

from grounding_dino.ops.status import StatusRow, kernel_status


def build_kernels() -> list[StatusRow]:
    """Builds what this machine can use into the cache and says how each kernel stands; no compiler is no error."""
    return kernel_status()


def main() -> int:
    """Builds and reports; 1 only where GROUNDING_DINO_KERNELS=native demands a kernel that cannot be built."""
    rows = build_kernels()
    for row in rows:
        print(f"{row.name}: {row.text}")
    return int(any(row.name == "kernels" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
