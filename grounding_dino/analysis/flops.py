"""Multiply-adds of a forward pass, part by part, counted on its trace by fvcore."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from grounding_dino.analysis.parts import AFTER, BEFORE, PARTS, part_of, starts_last

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS
from fvcore.nn.jit_handles import Handle, get_shape
from torch import Tensor, nn

SAMPLING_OPERATORS = ("ms_deform_attn", "grid_sampler")
_CHILD = "model"  # the name under which the wrapper holds the model, first in all names of fvcore


@dataclasses.dataclass(frozen=True)
class FlopCounts:
    """What a forward pass computes.

    Attributes:
        multiply_adds: of (part, operator). A fused multiply-add is one; norms count 5 an element with affine weights,
            bilinear resizing 4, pooling 1, as in fvcore. Sampling of deformable attention counts 5 for a
            channel of a point: 4 neighbours and the point's weight.
        elementwise: output elements of additions, products, softmax and the like, which are in no total.
        uncounted: calls of all other operators; they move data, or look at a few numbers.
    """

    multiply_adds: Mapping[tuple[str, str], int]
    elementwise: Mapping[str, int]
    uncounted: Mapping[str, int]

    def total(self, part: str | None = None, without: tuple[str, ...] = ()) -> int:
        """Multiply-adds of a part, or of all, without those of the operators named."""
        return sum(
            count
            for (where, operator), count in self.multiply_adds.items()
            if part in (None, where) and operator not in without
        )

    def by_operator(self) -> dict[str, int]:
        """Multiply-adds of each operator, the largest first."""
        counts: Counter[str] = Counter()
        for (_, operator), count in self.multiply_adds.items():
            counts[operator] += count
        return dict(counts.most_common())


def count_flops(model: nn.Module, batched_inputs: list[dict[str, Any]]) -> FlopCounts:
    """Count one forward pass of a model in evaluation mode, results included.

    The pass is run as it is, in real size: what is selected, kept or cut to chunks depends on numbers.
    """
    wrapped = _OnTensors(model, batched_inputs)
    analysis = FlopCountAnalysis(wrapped, tuple(inputs["image"] for inputs in batched_inputs))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.ancestor_mode("caller")
    scopes = _Scopes()
    handles = {**_DEFAULT_SUPPORTED_OPS, **_OWN_HANDLES}
    analysis.set_op_handle(**{name: scopes.counting(name, handle) for name, handle in handles.items()})
    analysis.set_op_handle(**{f"aten::{name}": scopes.counting(_ELEMENTWISE, _elements) for name in _ELEMENTWISE_NAMES})
    with torch.no_grad():
        counts = analysis.by_operator()
    work = {key: int(count) for key, count in counts.items() if key[1] != _ELEMENTWISE}
    order = {part: place for place, part in enumerate(PARTS)}
    return FlopCounts(
        multiply_adds=dict(sorted(work.items(), key=lambda item: (order[item[0][0]], item[0][1]))),
        elementwise={part: int(count) for (part, name), count in counts.items() if name == _ELEMENTWISE},
        uncounted={name.partition("::")[2]: calls for name, calls in analysis.unsupported_ops().most_common()},
    )


class _OnTensors(nn.Module):
    """A model behind tensors, as tracing wants it: pictures in, every tensor of the results out."""

    def __init__(self, model: nn.Module, batched_inputs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.model = model
        self.others = [{k: v for k, v in inputs.items() if k != "image"} for inputs in batched_inputs]

    def forward(self, *images: Tensor) -> list[Tensor]:
        results = self.model([{**others, "image": image} for others, image in zip(self.others, images)])
        found: list[Tensor] = []
        for result in results:
            if "instances" in result:
                fields = result["instances"].get_fields().values()
                found += [getattr(value, "tensor", value) for value in fields]
            found += [result["sem_seg"]] if "sem_seg" in result else []
            found += [result["panoptic_seg"][0]] if "panoptic_seg" in result else []
        return [value for value in found if isinstance(value, Tensor)]


class _Scopes:
    """Turns handles of fvcore into handles that say in which part of the model an operator runs."""

    def __init__(self) -> None:
        self._decoded = False

    def counting(self, name: str, handle: Handle) -> Handle:
        operator = {"aten::_convolution": "conv"}.get(name, name.partition("::")[2] or name)

        def counted(inputs: list[Any], outputs: list[Any]) -> Counter[tuple[str, str]]:
            part = self._part(outputs[0].node().scopeName())
            count = handle(inputs, outputs)
            return Counter({(part, operator): sum(count.values()) if isinstance(count, Counter) else count})

        return counted

    def _part(self, scope: str) -> str:
        """The part of a scope "/model/model.backbone/..."; operators come in the order in which they ran."""
        names = [name.removeprefix(f"{_CHILD}.") for name in scope.split("/")]
        part = part_of(names)
        self._decoded = self._decoded or any(map(starts_last, names))
        return part or (AFTER if self._decoded else BEFORE)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """(B, heads, Q, D) queries, (B, heads, T, D) keys, (B, heads, T, D') values: two products of matrices."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _deformable_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """(B, S, H, D) values sampled for (B, Q, H, L, P) weights."""
    return 5 * math.prod(get_shape(inputs[4])) * get_shape(inputs[0])[-1]


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """Of matrices, or of matrices and a vector, which fvcore's own count does not know."""
    return math.prod(get_shape(outputs[0]) or ()) * get_shape(inputs[0])[-1]


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    """Something, and the two matrices whose product is added to it."""
    return _product(inputs[1:], outputs)


def _resized_bicubic(inputs: list[Any], outputs: list[Any]) -> int:
    return 16 * math.prod(get_shape(outputs[0]))


def _elements(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(get_shape(outputs[0]) or ())


_OWN_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention,
    "grounding_dino::ms_deform_attn": _deformable_attention,
    "aten::matmul": _product,
    "aten::baddbmm": _added_product,
    "aten::upsample_bicubic2d": _resized_bicubic,
}
_ELEMENTWISE = "elementwise"
_ELEMENTWISE_NAMES = (
    *("add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "abs", "reciprocal", "pow", "sqrt"),
    *("rsqrt", "exp", "log", "logit", "sigmoid", "tanh", "gelu", "silu", "softmax", "sin", "cos", "cumsum", "sum"),
    *("mean", "maximum", "minimum", "hardsigmoid", "clamp_min", "linalg_vector_norm", "prod", "amax", "amin", "ne"),
    *("addcmul", "addcdiv", "exp_"),
    *("lt", "le", "isnan", "logical_and", "logical_or", "__or__", "nan_to_num", "max_pool2d"),
)
