"""Linear layers by oneDNN against PyTorch's operators."""

from __future__ import annotations

from grounding_dino.ops.linear import _onednn_works, affine, linear

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


class Called(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        self.names.add(function.name())
        return function(*arguments, **(options or {}))


def example() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(24, 40), torch.randn(2, 7, 24)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_plain_operators(activation: str, bias: bool) -> None:
    layer, x = example()
    given = layer.bias if bias else None
    expected = ACTIVATIONS[activation](F.linear(x, layer.weight, given))
    with torch.no_grad(), Called() as called:
        found = affine(x, layer.weight, given, activation)
        strided = affine(x.transpose(0, 1), layer.weight, given, activation)
    assert "mkldnn::_linear_pointwise" in called.names
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(strided.transpose(0, 1), expected, rtol=1e-5, atol=1e-6)


def test_autocast_computes_in_its_precision() -> None:
    layer, x = example()
    _onednn_works.cache_clear()  # asked for the first time under autocast
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert _onednn_works()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Called() as called:
        found = linear(layer, x, "relu")
        expected = F.relu(layer(x))
    assert "mkldnn::_linear_pointwise" in called.names
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_those_of_plain_operators(activation: str, bias: bool) -> None:
    layer, x = example()
    given = [x.requires_grad_(), layer.weight, *([layer.bias] if bias else [])]
    towards = torch.randn(2, 7, 40)
    with Called() as called:
        found = torch.autograd.grad(affine(*given, *([] if bias else [None]), activation), given, towards)
    assert "mkldnn::_linear_pointwise" in called.names
    plain = ACTIVATIONS[activation](F.linear(*given))
    for gradient, expected in zip(found, torch.autograd.grad(plain, given, towards)):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    layer, x = example()
    given = {"x": x.requires_grad_(), "weight": layer.weight, "bias": layer.bias}
    given[frozen].requires_grad_(False)
    affine(**given).sum().backward()
    assert {name for name, tensor in given.items() if tensor.grad is None} == {frozen}


def test_gradients_of_gradients_equal_those_of_plain_operators() -> None:
    layer, x = example()
    given = [x.requires_grad_(), layer.weight]

    def penalty(output: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return slope.square().sum()

    found = torch.autograd.grad(penalty(linear(layer, x, "gelu")), given)
    for gradient, expected in zip(found, torch.autograd.grad(penalty(F.gelu(layer(x))), given)):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_biases_with_gaps_and_single_rows() -> None:
    layer, x = example()
    with_gaps = torch.randn(80)[::2]
    expected = F.linear(x, layer.weight, with_gaps)
    torch.testing.assert_close(affine(x, layer.weight, with_gaps), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(affine(x, layer.weight, with_gaps), expected, rtol=1e-5, atol=1e-5)
    linear(layer, x[0, 0]).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x[0, 0].expand(40, -1))


def test_layers_with_hooks_are_called() -> None:
    layer, x = example()
    prune.random_unstructured(layer, "weight", 0.5)  # whose weight is made by a hook
    with torch.no_grad():
        layer.weight_orig.add_(1.0)
        torch.testing.assert_close(linear(layer, x), layer(x), rtol=0, atol=0)


def test_wrong_widths_are_named() -> None:
    layer, x = example()
    with torch.no_grad(), pytest.raises(RuntimeError, match="14x23 and 24x40"):
        linear(layer, x[..., :23])


def test_the_trial_does_not_depend_on_defaults() -> None:
    works = _onednn_works()
    for context in (torch.device("meta"), torch.inference_mode()):
        _onednn_works.cache_clear()
        with context:
            assert _onednn_works() == works


def test_other_precisions_and_layers_take_the_plain_way() -> None:
    layer, x = example()
    with Called() as called:
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
            linear(layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            linear(layer, x, "relu").sum().backward()
        with torch.no_grad():
            linear(nn.Sequential(layer), x)
        linear(layer.double(), x.double()).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert linear(layer, x.double()).dtype == torch.float64
    assert "mkldnn::_linear_pointwise" not in called.names
    assert layer.weight.grad is not None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_nan(activation: str, dtype: torch.dtype) -> None:
    """Predictors tell broken weights by what comes out."""
    layer, x = example()
    with torch.no_grad():
        layer.bias[3] = float("nan")
        output = linear(layer.to(dtype), x.to(dtype), activation)
    assert output[..., 3].isnan().all() and output.isnan().sum() == output[..., 3].numel()


def test_no_tokens() -> None:
    layer, x = example()
    with torch.no_grad():
        assert linear(layer, x[:, :0], "gelu").shape == (2, 0, 40)
