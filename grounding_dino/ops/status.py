"""Which kernels are in use and why, for people."""

from __future__ import annotations

from typing import NamedTuple

from grounding_dino.ops import loader

import torch


class StatusRow(NamedTuple):
    """One line of a report: what it is about, how it stands, and what to do (empty where all is well)."""

    name: str
    text: str
    remedy: str = ""


def _row(name: str, kernel: loader.Kernel, remedy: str) -> StatusRow:
    if kernel.library is not None:
        return StatusRow(name, f"native, {kernel.reason}: {kernel.path}")
    wanted = "" if loader.kernels_mode() == "off" else remedy
    return StatusRow(name, f"plain PyTorch, slow: {kernel.reason}", wanted)


def kernel_status() -> list[StatusRow]:
    """A row a device of this machine: native kernel or twin, and why. Builds the kernels that are not built yet."""
    try:
        rows = [_row("CPU kernel", loader.cpu_kernel(), loader.CPU_REMEDY)]
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            major, minor = torch.cuda.get_device_capability(index)
            rows.append(_row(f"CUDA kernel {index}", loader.cuda_kernel(f"{major}{minor}"), loader.CUDA_REMEDY))
    except loader.KernelError as error:
        return [StatusRow("kernels", str(error), "Correct GROUNDING_DINO_KERNELS or what it asks for.")]
    return rows
