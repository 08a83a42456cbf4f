"""Linear layers: by oneDNN with their bias and GELU in one pass, where it may, else by PyTorch's operators."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
_DTYPES = (torch.float32, torch.bfloat16)


def linear(layer: nn.Module, x: Tensor, activation: str = "none") -> Tensor:
    """`layer(x)`, followed by "relu", "gelu" (exact) or "none".

    On CPUs without gradient a plain `nn.Linear` is left to oneDNN: its products of float32 matrices are a fifth faster
    than MKL's on some processors, and bias and GELU cost no pass of their own. Results differ in rounding alone.
    A layer that is something else, an adapter say, is called.
    """
    if type(layer) is not nn.Linear:
        output: Tensor = _ACTIVATIONS[activation](layer(x))
        return output
    return affine(x, layer.weight, layer.bias, activation)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """As :func:`linear`, of `weight` (out, in) and `bias` (out)."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if not _fits(x, weight, dtype):
        return _ACTIVATIONS[activation](F.linear(x, weight, bias))
    x, weight = x.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if activation == "gelu":
        widened: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        return widened
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output.relu_() if activation == "relu" else output  # oneDNN's own ReLU makes NaN 0: broken weights hid


def _fits(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and dtype in _DTYPES
        and (x.dtype == weight.dtype or torch.is_autocast_enabled("cpu"))
        and not torch.is_grad_enabled()
        and type(weight) in (Tensor, nn.Parameter)  # quantised weights have products of their own
        and type(x) is Tensor
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _onednn_works()
    )


@functools.cache
def _onednn_works() -> bool:
    """Whether this torch has the operator, which is not public, and it computes what is expected."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.eye(4)[:3], torch.arange(8.0).view(2, 4) - 3, torch.tensor([0.5, -0.5])
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
