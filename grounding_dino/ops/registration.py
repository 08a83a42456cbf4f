"""Multi-scale deformable attention as PyTorch operators, and the public function that picks kernel or twin.

The operators `grounding_dino::ms_deform_attn` and `..._backward` have CPU and CUDA implementations, a fake one and an
autograd formula, so `torch.compile`, `torch.export` and autocast work. Values may be fp32, bf16 or (CUDA) fp16;
locations and attention weights are taken as fp32 and sums are held in fp32, whatever autocast does around them.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from grounding_dino.ops import loader
from grounding_dino.ops.twin import ms_deform_attn_in_order, ms_deform_attn_torch

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("grounding_dino", "DEF")
_ARGUMENTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)
_LIBRARY.define(f"ms_deform_attn({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"ms_deform_attn_backward({_ARGUMENTS}, Tensor gradient) -> (Tensor, Tensor, Tensor)")

# Numbers of the dtypes in the C interfaces.
_CPU_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_CUDA_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Multiply-adds below which a second thread costs more than it saves.
_WORK_PER_THREAD = 1 << 17


@functools.cache
def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def _kernel(value: Tensor) -> loader.Kernel | None:
    """The kernel for values of this device and dtype, or None where only the twin does."""
    if value.is_cuda:
        return loader.cuda_kernel(_architecture(value.device)) if value.dtype in _CUDA_DTYPES else None
    return loader.cpu_kernel() if value.device.type == "cpu" and value.dtype in _CPU_DTYPES else None


def _library(value: Tensor) -> Any:
    """The loaded kernels for this value, or None."""
    kernel = _kernel(value)
    return None if kernel is None else kernel.library


def _check(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raises ValueError for shapes that do not fit each other, and (CPU) for levels that leave the values."""
    if value.dim() != 4 or sampling_locations.dim() != 6:
        raise ValueError(
            f"ms_deform_attn takes value (B, S, H, D) and sampling_locations (B, Q, H, L, P, 2), "
            f"not {tuple(value.shape)} and {tuple(sampling_locations.shape)}."
        )
    batch, tokens, heads, _ = value.shape
    levels = spatial_shapes.shape[0]
    _, queries, _, _, points, _ = sampling_locations.shape
    expected = (batch, queries, heads, levels, points)
    if tuple(sampling_locations.shape) != (*expected, 2) or tuple(attention_weights.shape) != expected:
        raise ValueError(
            f"ms_deform_attn: for value {tuple(value.shape)} and {levels} levels, sampling_locations must be "
            f"(B, Q, H, L, P, 2) and attention_weights (B, Q, H, L, P), not {tuple(sampling_locations.shape)} "
            f"and {tuple(attention_weights.shape)}."
        )
    if spatial_shapes.shape != (levels, 2) or level_start_index.shape != (levels,):
        raise ValueError(
            f"ms_deform_attn: spatial_shapes must be (L, 2) and level_start_index (L,), "
            f"not {tuple(spatial_shapes.shape)} and {tuple(level_start_index.shape)}."
        )
    if spatial_shapes.device.type != "cpu":
        return  # looking would make the host wait; the CUDA kernels read nothing outside the values
    for (height, width), start in zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True):
        if min(height, width, start) < 0 or start + height * width > tokens:
            raise ValueError(
                f"ms_deform_attn: a level of {height} x {width} that starts at {start} does not fit in {tokens} "
                "tokens; spatial_shapes and level_start_index do not belong to this value."
            )


def _inner_contiguous(tensor: Tensor, dims: int) -> Tensor:
    """`tensor` with its last `dims` dimensions contiguous; the others may have any stride."""
    expected = 1
    for size, stride in zip(tensor.shape[: -dims - 1 : -1], tensor.stride()[: -dims - 1 : -1], strict=True):
        if size > 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _prepare(value: Tensor, *tensors: Tensor) -> tuple[Any, list[Tensor]]:
    """The `sizes` array of the C interfaces, and the tensors whose pointers go with it (keep them alive).

    fp32 and bf16 locations alike come out as fp32: cells of a large map are finer than bf16 can tell apart.
    """
    spatial_shapes, level_start_index, sampling_locations, attention_weights = tensors
    value = _inner_contiguous(value, 1)
    locations = _inner_contiguous(sampling_locations.to(torch.float32), 3)
    weights = _inner_contiguous(attention_weights.to(torch.float32), 2)
    levels = [t.to(value.device, torch.int64).contiguous() for t in (spatial_shapes, level_start_index)]
    _, queries, _, num_levels, points, _ = locations.shape
    strides = (*value.stride()[:3], *locations.stride()[:3], *weights.stride()[:3])
    numbers = (*value.shape, queries, num_levels, points, *strides)
    return (ctypes.c_int64 * len(numbers))(*numbers), [value, *levels, locations, weights]


def _threads(locations: Tensor, channels: int) -> int:
    return max(1, min(torch.get_num_threads(), locations.numel() * 2 * channels // _WORK_PER_THREAD))


def _launch_shape(sizes: Any, *tensors: Tensor) -> tuple[int, int]:
    """Channels that a thread of the CUDA kernels reads at once, and the number of blocks.

    Four where the rows of `tensors` (values, and in backward the output's gradient) start at multiples of four.
    """
    batch, _, heads, channels, queries = sizes[:5]
    strides = (channels, *sizes[7:10])
    aligned = all(tensor.data_ptr() % (4 * tensor.element_size()) == 0 for tensor in tensors)
    width = 4 if aligned and all(stride % 4 == 0 for stride in strides) else 1
    return width, -(-batch * queries * heads * loader.CUDA_GROUP // loader.CUDA_BLOCK)


def _raise_on(code: int, library: Any, cuda: bool) -> None:
    if code == 0:
        return
    if not cuda:
        raise MemoryError("ms_deform_attn: out of memory in the CPU kernel; use a smaller batch or picture.")
    raise RuntimeError(f"ms_deform_attn: the CUDA kernel failed: {library.gd_cuda_error(code).decode()}.")


def _forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    arguments = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    _check(*arguments)
    library = _library(value)
    if library is None:
        return ms_deform_attn_torch(*arguments)
    sizes, tensors = _prepare(*arguments)
    output = _fake_forward(*arguments)
    if output.numel() == 0:
        return output
    pointers = [t.data_ptr() for t in (*tensors, output)]
    if value.is_cuda:
        with torch.cuda.device(value.device):
            stream = torch.cuda.current_stream().cuda_stream
            launch = (sizes, _CUDA_DTYPES[value.dtype], *_launch_shape(sizes, tensors[0]))
            code = library.gd_ms_deform_attn_cuda_forward(*launch, *pointers, stream)
    else:
        threads = _threads(sampling_locations, value.shape[3])
        code = library.gd_ms_deform_attn_forward(sizes, _CPU_DTYPES[value.dtype], *pointers, threads)
    _raise_on(code, library, value.is_cuda)
    return output


def _backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    library = _library(value)
    if library is None:
        return _twin_backward(*arguments, gradient)
    sizes, tensors = _prepare(*arguments)
    float_locations, float_weights = tensors[3], tensors[4]
    gradient = gradient.to(value.dtype).contiguous()
    # The CUDA kernel adds up with atomics, in fp32; the CPU kernel writes every element.
    value_gradient = (
        torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        if value.is_cuda
        else torch.empty(value.shape, dtype=value.dtype)
    )
    location_gradient = torch.empty(float_locations.shape, dtype=torch.float32, device=value.device)
    weight_gradient = torch.empty(float_weights.shape, dtype=torch.float32, device=value.device)
    outputs = (value_gradient, location_gradient, weight_gradient)
    pointers = [t.data_ptr() for t in (*tensors, gradient, *outputs)]
    if gradient.numel() == 0:
        value_gradient.zero_()
    elif value.is_cuda:
        with torch.cuda.device(value.device):
            stream = torch.cuda.current_stream().cuda_stream
            launch = (sizes, _CUDA_DTYPES[value.dtype], *_launch_shape(sizes, tensors[0], gradient))
            code = library.gd_ms_deform_attn_cuda_backward(*launch, *pointers, stream)
        _raise_on(code, library, True)
    else:
        threads = _threads(sampling_locations, value.shape[3])
        code = library.gd_ms_deform_attn_backward(sizes, _CPU_DTYPES[value.dtype], *pointers, threads)
        _raise_on(code, library, False)
    return (
        value_gradient.to(value.dtype),
        location_gradient.to(sampling_locations.dtype),
        weight_gradient.to(attention_weights.dtype),
    )


def _twin_backward(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value, spatial_shapes, level_start_index, locations, weights, gradient = arguments
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]
        output = ms_deform_attn_torch(leaves[0], spatial_shapes, level_start_index, leaves[1], leaves[2])
        value_gradient, location_gradient, weight_gradient = torch.autograd.grad(output, leaves, gradient)
    return value_gradient, location_gradient, weight_gradient


def _fake_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


def _fake_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = torch.ops.grounding_dino.ms_deform_attn_backward(*ctx.saved_tensors, gradient)
    return value, None, None, locations, weights


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("ms_deform_attn", _forward, _key)
    _LIBRARY.impl("ms_deform_attn_backward", _backward, _key)
torch.library.register_fake("grounding_dino::ms_deform_attn", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("grounding_dino::ms_deform_attn_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("grounding_dino::ms_deform_attn", _autograd, setup_context=_setup_context, lib=_LIBRARY)


def _operator_fits(value: Tensor) -> bool:
    dtypes = {"cpu": _CPU_DTYPES, "cuda": _CUDA_DTYPES}.get(value.device.type, {})
    if value.dtype not in dtypes or loader.kernels_mode() == "off":
        return False
    # In a traced graph the operator decides when it runs, which may be on another machine.
    return torch.compiler.is_compiling() or _library(value) is not None


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention by the native kernel where there is one, else by its PyTorch twin.

    Arguments, result and what counts as outside: `ms_deform_attn_torch`. Kernels exist for fp32 and bf16 values on
    CPUs and for fp32, bf16 and fp16 values on NVIDIA GPUs; the CPU kernel's results do not depend on the number of
    threads. Where torch is to use deterministic algorithms only, gradients on GPUs come from `ms_deform_attn_in_order`.
    Raises ValueError where shapes do not fit each other or a level leaves the values (native kernels).
    """
    arguments = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if value.is_cuda and torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled():
        return ms_deform_attn_in_order(*arguments)
    if _operator_fits(value):
        output: Tensor = torch.ops.grounding_dino.ms_deform_attn(*arguments)
        return output
    return ms_deform_attn_torch(*arguments)
