"""Linear layers: by oneDNN with their bias and GELU in one pass, where it may, else by PyTorch's operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
_DTYPES = (torch.float32, torch.bfloat16)


def linear(layer: nn.Module, x: Tensor, activation: str = "none") -> Tensor:
    """`layer(x)`, followed by "relu", "gelu" (exact) or "none".

    On CPUs a plain `nn.Linear` is left to oneDNN: its products of float32 matrices are a third faster than MKL's on
    some processors, and without gradients bias and GELU cost no pass of their own. Results differ in rounding alone.
    A layer that is something else, an adapter say, or has hooks, which may watch it or make its weight, is called.
    """
    if type(layer) is not nn.Linear or _has_hooks(layer):
        output: Tensor = _ACTIVATIONS[activation](layer(x))
        return output
    return affine(x, layer.weight, layer.bias, activation)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """As :func:`linear`, of `weight` (out, in) and `bias` (out)."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if not _fits(x, weight, bias, dtype):
        return _ACTIVATIONS[activation](F.linear(x, weight, bias))
    if torch.is_grad_enabled():
        learned: Tensor = _Product.apply(x, weight, bias)
        return _ACTIVATIONS[activation](learned)
    x, weight = x.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if activation == "gelu":
        widened: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        return widened
    output = _product(x, weight, bias)
    return output.relu_() if activation == "relu" else output  # oneDNN's own ReLU makes NaN 0: broken weights hid


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


class _Product(torch.autograd.Function):
    """`F.linear` in float32, whose result and whose gradient of `x` oneDNN computes.

    The gradient of the weights is PyTorch's product: oneDNN is slower where both matrices are transposed.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            affine(gradient, weight.t(), None) if of_x else None,  # which has a gradient itself
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and dtype in _DTYPES
        and (x.dtype == weight.dtype or torch.is_autocast_enabled("cpu"))
        and x.dtype != torch.float64  # which autocast leaves
        and not (torch.is_grad_enabled() and (dtype != torch.float32 or torch.is_autocast_enabled("cpu")))
        and type(weight) in (Tensor, nn.Parameter)  # quantised weights have products of their own
        and type(x) is Tensor
        and x.numel() > 0
        and x.dim() > 1
        and x.shape[-1] == weight.shape[-1]  # oneDNN does not say what is wrong
        and (bias is None or bias.is_contiguous())  # oneDNN reads on from its first number
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags
        and _onednn_works()
    )


@functools.cache
def _onednn_works() -> bool:
    """Whether this torch has the operator, which is not public, and it computes what is expected."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():
        return False
    x = torch.eye(4, device="cpu", dtype=torch.float32)[:3]  # whatever the defaults are at the moment
    weight, bias = x.new_tensor([[-3, -2, -1, 0], [1, 2, 3, 4]]), x.new_tensor([0.5, -0.5])
    try:
        with torch.autocast("cpu", enabled=False):  # whoever asks first, the answer is kept
            return all(
                torch.allclose(
                    operator(x, weight, bias, name, [], algorithm), _ACTIVATIONS[name](F.linear(x, weight, bias))
                )
                for name, algorithm in (("none", ""), ("gelu", "none"))
            )
    except (RuntimeError, TypeError):
        return False
