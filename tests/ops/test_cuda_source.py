"""The CUDA kernel's source, compiled for the CPU (cuda_on_cpu/), against the twin: its arithmetic without a GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

from grounding_dino.ops import loader, ms_deform_attn_torch, nvrtc, registration

import pytest
import torch
from torch import Tensor

STAND_INS = Path(__file__).parent / "cuda_on_cpu"


IMAGE = b"kernels"  # what the stand-in of the driver takes for a cubin


@pytest.fixture(scope="module", params=[800, 900])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CUDA sources as a library for this CPU, as seen by GPUs before and from Hopper on, and a CUDA driver."""
    folder = tmp_path_factory.mktemp("cuda")
    text = (loader.SOURCES / loader.CUDA_SOURCE).read_text(encoding="utf-8")
    text, launches = re.subn(
        r"(k\w+\[dtype\]\[width == 4\])<<<(.*?), 0, static_cast<cudaStream_t>\(stream\)>>>\(\s*",
        lambda m: f"launch({m[1]}, {m[2]}, ",
        text,
    )
    assert launches == 2
    (folder / "kernel.cpp").write_text(text + '#include "driver.h"\n', encoding="utf-8")
    compiler = loader.find_compiler()
    assert compiler is not None, "this test needs a C++ compiler"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-D__CUDA_ARCH__={request.param}"]
    command += [*loader.CUDA_DEFINES, f"-I{STAND_INS}", f"-I{loader.SOURCES}", "-include", "cuda_runtime.h"]
    command += [str(folder / "kernel.cpp"), "-o", str(folder / "kernel.so")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return str(folder / "kernel.so")


@pytest.fixture(params=["runtime", "driver"])
def library(request: pytest.FixtureRequest, built: str) -> Any:
    """The kernels as nvcc's library launches them, and as the driver does from an image of NVRTC."""
    if request.param == "driver":
        return nvrtc.CudaModule(IMAGE, loader.CUDA_BLOCK, driver=built)
    library = ctypes.CDLL(built)
    loader.declare_cuda(library)
    return library


def _run(library: Any, arguments: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of value, locations and weights."""
    sizes, tensors = registration._prepare(*arguments)
    number = registration._CUDA_DTYPES[arguments[0].dtype]
    launch = (sizes, number, *registration._launch_shape(sizes, tensors[0], gradient))
    output = torch.full(gradient.shape, float("nan"), dtype=arguments[0].dtype)
    pointers = [t.data_ptr() for t in tensors]
    assert library.gd_ms_deform_attn_cuda_forward(*launch, *pointers, output.data_ptr(), None) == 0
    gradients = [torch.zeros(arguments[0].shape), *(torch.full(t.shape, float("nan")) for t in tensors[3:])]
    outputs = [gradient.data_ptr(), *(g.data_ptr() for g in gradients)]
    assert library.gd_ms_deform_attn_cuda_backward(*launch, *pointers, *outputs, None) == 0
    return [output, *gradients]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("channels", [32, 12, 5, 40])
def test_equals_the_twin(library: Any, dtype: torch.dtype, tolerance: float, channels: int) -> None:
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
def test_levels_that_leave_the_values_count_as_outside(library: Any) -> None:
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


@pytest.mark.slow
def test_an_image_that_the_driver_refuses_is_an_error_in_words(built: str) -> None:
    module = nvrtc.CudaModule(b"no kernels", loader.CUDA_BLOCK, driver=built)
    value, shapes = torch.ones(1, 4, 1, 4), torch.tensor([[2, 2]])
    arguments = [value, shapes, torch.tensor([0]), torch.rand(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)]
    sizes, tensors = registration._prepare(*arguments)
    code = module.gd_ms_deform_attn_cuda_forward(sizes, 0, 4, 1, *(t.data_ptr() for t in (*tensors, value)), 0)
    with pytest.raises(RuntimeError, match="the CUDA kernel failed: device kernel image is invalid"):
        registration._raise_on(code, module, cuda=True)


@pytest.mark.parametrize(("channels", "offset", "width"), [(32, 0, 4), (12, 0, 4), (5, 0, 1), (32, 1, 1)], ids=str)
def test_rows_are_read_in_pieces_of_four_where_they_are_aligned(channels: int, offset: int, width: int) -> None:
    value = torch.zeros(1, 4, 2, channels + offset)[..., offset:]
    arguments = [
        value,
        torch.tensor([[2, 2]]),
        torch.tensor([0]),
        torch.rand(1, 70, 2, 1, 1, 2),
        torch.ones(1, 70, 2, 1, 1),
    ]
    sizes, tensors = registration._prepare(*arguments)
    assert registration._launch_shape(sizes, tensors[0]) == (width, 5)  # 70 x 2 groups of 8 in blocks of 256
