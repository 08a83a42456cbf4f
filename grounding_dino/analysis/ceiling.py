"""What this machine's own matrix products reach, the bound that shares are given of."""

from __future__ import annotations

import time

import torch

SIZES = {"cpu": 2048, "cuda": 8192}  # rows and columns: large enough to be bound by arithmetic


def matmul_rate(dtype: torch.dtype, device: str = "cpu", size: int = 0, repeats: int = 3) -> float:
    """Floating-point operations a second, two a multiply-add, of the fastest of some products of square matrices.

    Args:
        size: rows and columns; 0 takes SIZES.
    """
    kind = torch.device(device).type
    size = size or SIZES.get(kind, SIZES["cuda"])
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def synchronize(device: str | torch.device) -> None:
    """Wait until a GPU is done; nothing on the CPU, which is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
