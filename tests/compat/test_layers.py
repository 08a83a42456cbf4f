"""Frozen batch norm, norms by name, convolutions with norm, and small functions."""

from __future__ import annotations

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec, batched_nms, cat, get_norm
from torch import nn


def trained_norm(channels: int = 5) -> nn.BatchNorm2d:
    """A batch norm with statistics unlike the initial ones."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


def test_frozen_norm_equals_batch_norm_in_eval_mode() -> None:
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    x = torch.randn(2, 5, 3, 4)
    expected = norm.eval()(x)
    assert torch.allclose(frozen(x), expected, atol=1e-6)
    assert torch.allclose(frozen(x.clone().requires_grad_()), expected, atol=1e-6)
    assert not list(frozen.parameters())


def test_frozen_norm_passes_gradients() -> None:
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(trained_norm())
    x = torch.randn(1, 5, 2, 2, requires_grad=True)
    frozen(x).sum().backward()
    scale = frozen.weight / (frozen.running_var + frozen.eps).sqrt()
    assert torch.allclose(x.grad, scale.reshape(1, -1, 1, 1).expand_as(x))


def test_frozen_norm_starts_as_identity() -> None:
    x = torch.randn(2, 3, 2, 2)
    assert torch.allclose(FrozenBatchNorm2d(3)(x), x, atol=1e-6)


def test_frozen_norm_keeps_half_precision() -> None:
    x = torch.randn(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    assert FrozenBatchNorm2d(3)(x).dtype == torch.bfloat16


def test_conversion_goes_through_a_model_and_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(trained_norm(), nn.ReLU()))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert isinstance(frozen[1][0], FrozenBatchNorm2d)
    assert torch.equal(frozen.state_dict()["1.0.running_var"], state["1.0.running_var"])
    back = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(frozen)
    assert isinstance(back[1][0], nn.BatchNorm2d)
    assert all(torch.equal(back.state_dict()[name], value) for name, value in state.items())


def test_norms_by_name() -> None:
    assert isinstance(get_norm("BN", 8), nn.BatchNorm2d)
    assert isinstance(get_norm("SyncBN", 8), nn.SyncBatchNorm)
    assert isinstance(get_norm("FrozenBN", 8), FrozenBatchNorm2d)
    assert isinstance(get_norm("GN", 64), nn.GroupNorm)
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    assert get_norm("", 8) is None
    assert get_norm(None, 8) is None
    layer_norm = get_norm("LN", 8)
    assert layer_norm is not None
    normalised = layer_norm(torch.randn(2, 8, 3, 3))
    assert torch.allclose(normalised.mean(dim=1), torch.zeros(2, 3, 3), atol=1e-6)
    with pytest.raises((ValueError, KeyError)):
        get_norm("batch", 8)


def test_conv_applies_norm_and_activation() -> None:
    torch.manual_seed(0)
    conv = Conv2d(3, 4, kernel_size=3, padding=1, bias=False, norm=nn.GroupNorm(2, 4), activation=torch.relu)
    x = torch.randn(1, 3, 5, 5)
    plain = nn.functional.conv2d(x, conv.weight, padding=1)
    assert torch.equal(conv(x), torch.relu(conv.norm(plain)))
    assert set(conv.state_dict()) == {"weight", "norm.weight", "norm.bias"}


def test_block_freezes() -> None:
    class Block(CNNBlockBase):
        def __init__(self) -> None:
            super().__init__(3, 4, 2)
            self.conv = Conv2d(3, 4, kernel_size=1, norm=nn.BatchNorm2d(4))

    block = Block()
    assert block.freeze() is block
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)


def test_shape_spec() -> None:
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None)
    assert ShapeSpec(stride=4).channels is None


def test_cat_keeps_a_single_tensor() -> None:
    one = torch.ones(2, 3)
    assert cat([one]) is one
    assert cat([one, one], dim=1).shape == (2, 6)


def test_batched_nms_keeps_groups_apart() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 10.0]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1]), 0.5).tolist() == [1, 2]
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 0]), 0.5).tolist() == [1]
