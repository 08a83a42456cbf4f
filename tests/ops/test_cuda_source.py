"""The CUDA kernel's source, compiled for the CPU (cuda_on_cpu/), against the twin: its arithmetic without a GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

from grounding_dino.ops import loader, ms_deform_attn_torch, registration

import pytest
import torch
from torch import Tensor

STAND_INS = Path(__file__).parent / "cuda_on_cpu"


@pytest.fixture(scope="module", params=[800, 900])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA source as a library for this CPU, as seen by GPUs before and from Hopper on."""
    folder = tmp_path_factory.mktemp("cuda")
    text = (loader.SOURCES / loader.CUDA_SOURCE).read_text(encoding="utf-8")
    text, launches = re.subn(
        r"(\w+_kernel<T, \d>)\s*<<<(.*?), 0, stream>>>\(", lambda m: f"launch({m[1]}, {m[2]}, ", text, flags=re.DOTALL
    )
    assert launches == 4
    (folder / "kernel.cpp").write_text(text, encoding="utf-8")
    compiler = loader.find_compiler()
    assert compiler is not None, "this test needs a C++ compiler"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-D__CUDA_ARCH__={request.param}"]
    command += [f"-I{STAND_INS}", str(folder / "kernel.cpp"), "-o", str(folder / "kernel.so")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    library = ctypes.CDLL(str(folder / "kernel.so"))
    loader.declare_cuda(library)
    return library


def _run(library: ctypes.CDLL, arguments: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of value, locations and weights."""
    sizes, tensors = registration._prepare(*arguments)
    number = registration._CUDA_DTYPES[arguments[0].dtype]
    output = torch.full(gradient.shape, float("nan"), dtype=arguments[0].dtype)
    pointers = [t.data_ptr() for t in tensors]
    assert library.gd_ms_deform_attn_cuda_forward(sizes, number, *pointers, output.data_ptr(), None) == 0
    gradients = [torch.zeros(arguments[0].shape), *(torch.full(t.shape, float("nan")) for t in tensors[3:])]
    outputs = [gradient.data_ptr(), *(g.data_ptr() for g in gradients)]
    assert library.gd_ms_deform_attn_cuda_backward(sizes, number, *pointers, *outputs, None) == 0
    return [output, *gradients]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("channels", [32, 12, 5, 40])
def test_equals_the_twin(library: ctypes.CDLL, dtype: torch.dtype, tolerance: float, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    shapes, starts = torch.tensor([[3, 5], [2, 1], [1, 1]]), torch.tensor([0, 15, 17])
    value = torch.randn(2, 18, 2, channels, generator=generator).to(dtype)
    locations = torch.rand(2, 3, 2, 3, 2, 2, generator=generator) * 1.6 - 0.3
    locations[0, 0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 1] = float("nan"), float("inf")
    weights = torch.rand(2, 3, 2, 3, 2, generator=generator)
    gradient = torch.randn(2, 3, 2 * channels, generator=generator).to(dtype)
    arguments = [value, shapes, starts, locations, weights]

    leaves = [
        t.clone().requires_grad_(t.is_floating_point()) for t in (value.float(), shapes, starts, locations, weights)
    ]
    output = ms_deform_attn_torch(*leaves)
    wanted = [output.detach(), *torch.autograd.grad(output, [leaves[0], *leaves[3:]], gradient.float())]
    for index, (got, right) in enumerate(zip(_run(library, arguments, gradient), wanted, strict=True)):
        limit = tolerance if index == 0 else 1e-4  # all gradients are fp32 here
        torch.testing.assert_close(got.float(), right, rtol=limit, atol=limit)


@pytest.mark.slow
def test_levels_that_leave_the_values_count_as_outside(library: ctypes.CDLL) -> None:
    value = torch.ones(1, 4, 1, 4)
    arguments = [
        value,
        torch.tensor([[3, 3]]),
        torch.tensor([0]),
        torch.full((1, 1, 1, 1, 1, 2), 0.5),
        torch.ones(1, 1, 1, 1, 1),
    ]
    results = _run(library, arguments, torch.ones(1, 1, 4))
    assert not any(result.any() for result in results)
