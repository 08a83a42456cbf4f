"""The dynamic convolution against a plain one, which follows the description in tests/reference/glip/README.md."""

import math

import grounding_dino  # noqa: F401
from grounding_dino.modeling.dense_head.dynamic_conv import DeformableBranch, DynamicConv, DynamicReLU

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

DIM, GROUPS = 8, 4
ODD = [(5, 7), (3, 4), (2, 2), (1, 1)]  # the prefix of a buffer is neither its crop nor its reduction


def random_layer(offset_std: float = 0.5) -> DynamicConv:
    """Offsets up to a cell or two, weights of levels strictly between 0 and 1, and channels that differ."""
    torch.manual_seed(0)
    layer = DynamicConv(DIM, GROUPS).double()
    with torch.no_grad():
        layer.offset.weight.normal_(std=offset_std / 3)
        layer.offset.bias.normal_(std=offset_std)
        layer.scale_attention.weight.normal_(std=0.5)
        layer.scale_attention.bias.fill_(0.5)
        for branch in layer.branches:
            branch.norm.weight.normal_(mean=1, std=0.3)
            branch.norm.bias.normal_(std=0.3)
    return layer


def random_maps(sizes: list[tuple[int, int]], pictures: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(pictures, DIM, h, w, dtype=torch.float64) for h, w in sizes]


# ------------------------------------------------------------------------------------------- the plain version


def read(x: Tensor, row: float, column: float) -> Tensor:
    """(C,) of a map (C, H, W) between its cells, which are 0 outside."""
    top, left = math.floor(row), math.floor(column)
    total = torch.zeros_like(x[:, 0, 0])
    for r, share_r in ((top, top + 1 - row), (top + 1, row - top)):
        for c, share_c in ((left, left + 1 - column), (left + 1, column - left)):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                total = total + share_r * share_c * x[:, r, c]
    return total


def plain_branch(layer: DynamicConv, index: int, x: Tensor, offset: list[float], mask: list[float]) -> Tensor:
    """Branch `index` of one map (C, H, W); `offset` and `mask` are buffers that are read by flat index."""
    branch = layer.branches[index]
    stride = 2 if index == 2 else 1
    weight, bias = branch.convolution.weight, branch.convolution.bias
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    result = torch.empty(DIM, height, width, dtype=x.dtype)
    for r in range(height):
        for c in range(width):
            value = bias.clone()
            for tap in range(9):
                dy = offset[((2 * tap) * height + r) * width + c]
                dx = offset[((2 * tap + 1) * height + r) * width + c]
                found = read(x, r * stride - 1 + tap // 3 + dy, c * stride - 1 + tap % 3 + dx)
                value = value + mask[(tap * height + r) * width + c] * (weight[:, :, tap // 3, tap % 3] @ found)
            result[:, r, c] = value
    return F.group_norm(result[None], GROUPS, branch.norm.weight, branch.norm.bias)[0]


def plain_upsampled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The corners' cells stay the corners' cells."""
    rows, columns = ([i * (n - 1) / (m - 1) if m > 1 else 0.0 for i in range(m)] for n, m in zip(x.shape[1:], size))
    return torch.stack([torch.stack([read(x, r, c) for c in columns], -1) for r in rows], -2)


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def plain(layer: DynamicConv, maps: list[Tensor]) -> list[Tensor]:
    """The layer on maps (C, h, w) of one picture."""
    outputs = []
    for level, own in enumerate(maps):
        both = F.conv2d(own[None], layer.offset.weight, layer.offset.bias, padding=1)[0]
        offset, mask = both[:18].flatten().tolist(), both[18:].sigmoid().flatten().tolist()
        results = [plain_branch(layer, 1, own, offset, mask)]
        if level > 0:
            results.append(plain_branch(layer, 2, maps[level - 1], offset, mask))
        if level < len(maps) - 1:
            size = (own.shape[1], own.shape[2])
            results.append(plain_upsampled(plain_branch(layer, 0, maps[level + 1], offset, mask), size))
        total = torch.zeros_like(own)
        for result in results:
            attention = layer.scale_attention.weight[0] @ result.mean((1, 2)) + layer.scale_attention.bias
            total = total + hard_sigmoid(attention.clamp(min=0)) * result / len(results)
        squeezed, spread = layer.activation.coefficients[0], layer.activation.coefficients[2]
        hidden = (squeezed.weight @ total.mean((1, 2)) + squeezed.bias).clamp(min=0)
        a1, b1, a2, b2 = hard_sigmoid(spread.weight @ hidden + spread.bias)[:, None, None].split(DIM)
        line1 = total * (2 * (a1 - 0.5) + 1) + (b1 - 0.5)
        outputs.append(torch.maximum(line1, total * (2 * (a2 - 0.5)) + (b2 - 0.5)))
    return outputs


# ------------------------------------------------------------------------------------------------------- tests


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes", [ODD, [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)], [(1, 1), (1, 1), (1, 1)], [(3, 4)]], ids=str
)
def test_equals_the_plain_version(sizes: list[tuple[int, int]]) -> None:
    layer, maps = random_layer(), random_maps(sizes)
    found = layer(maps)
    assert [f.shape for f in found] == [m.shape for m in maps]
    for picture in range(2):
        for ours, expected in zip(found, plain(layer, [m[picture] for m in maps]), strict=True):
            torch.testing.assert_close(ours[picture], expected, atol=1e-12, rtol=0)


def test_offsets_start_at_zero_and_taps_at_half() -> None:
    """A new layer is an ordinary convolution of half its kernel."""
    torch.manual_seed(0)
    layer = DynamicConv(DIM, GROUPS)
    assert all(parameter.eq(0).all() for parameter in layer.offset.parameters())
    x = torch.randn(2, DIM, 5, 7)
    branch = layer.branches[2]
    offset, mask = layer.offset(x[..., ::2, ::2]).split((18, 9), 1)
    weight, bias = branch.convolution.weight, branch.convolution.bias
    expected = F.group_norm(F.conv2d(x, weight / 2, bias, stride=2, padding=1), GROUPS)
    torch.testing.assert_close(branch(x, offset, mask.sigmoid()), expected, atol=1e-5, rtol=0)


def test_every_level_reads_its_neighbours_and_no_other() -> None:
    layer, maps = random_layer(), random_maps(ODD)
    leaves = [m.requires_grad_() for m in maps]
    for level, output in enumerate(layer(leaves)):
        gradients = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, retain_graph=True)
        reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
        assert reached == [abs(level - other) <= 1 for other in range(len(ODD))]


def test_pictures_do_not_meet() -> None:
    layer, maps = random_layer(), random_maps(ODD, pictures=3)
    for together, alone in zip(layer(maps), layer([m[1:2] for m in maps])):
        torch.testing.assert_close(together[1:2], alone, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision(dtype: torch.dtype, how: str) -> None:
    """Finite, in the maps' own type, and as far from float32 as a few roundings of values up to 4."""
    layer = random_layer(offset_std=0.2).float()
    maps = [m.float() for m in random_maps(ODD)]
    exact = layer(maps)
    if how == "weights":
        found = layer.to(dtype)([m.to(dtype) for m in maps])
        assert all(f.dtype == dtype for f in found)
    else:
        with torch.autocast("cpu", dtype=dtype):
            found = layer(maps)
    for ours, expected in zip(found, exact):
        torch.testing.assert_close(ours.float(), expected, atol=16 * torch.finfo(dtype).eps, rtol=0)


def test_dynamic_relu_by_hand() -> None:
    """Slopes and shifts in the published order: slopes, shifts, second slopes, second shifts of all channels."""
    layer = DynamicReLU(4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        # hard sigmoid: (bias + 3) / 6, so 3 -> 1, 0 -> 0.5, -3 -> 0, 1.5 -> 0.75
        layer.coefficients[2].bias.copy_(torch.tensor([3.0, 0, -3, 0, 0, 3, 0, 0, -3, 0, 0, 1.5, 0, 0, 0, -3]))
    lines = [((2, 0), (-1, 0)), ((1, 0.5), (0, 0)), ((0, 0), (0, 0)), ((1, 0), (0.5, -0.5))]
    x = torch.tensor([-2.0, -0.25, 3.0])
    expected = torch.stack([torch.maximum(a * x + b, c * x + d) for (a, b), (c, d) in lines])
    torch.testing.assert_close(layer(x.expand(1, 4, 1, 3))[0, :, 0], expected)


def test_dynamic_relu_starts_near_a_relu() -> None:
    """Coefficients of 0 are the identity above 0 and a flat line below."""
    layer = DynamicReLU(4)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(layer(x), x.relu())


@pytest.mark.parametrize("stride, size", [(1, (6, 9)), (2, (3, 5))])
def test_values_and_gradients_are_those_of_torchvision(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    branch = DeformableBranch(DIM, stride, GROUPS).double()
    x = torch.randn(2, DIM, 6, 9, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(2, 18, *size, dtype=torch.float64).mul(3).requires_grad_()  # some outside of the map
    mask = torch.rand(2, 9, *size, dtype=torch.float64, requires_grad=True)
    layer, given = branch.convolution, [x, offset, mask, *branch.convolution.parameters()]
    plain = deform_conv2d(x, offset, layer.weight, layer.bias, stride=stride, padding=1, mask=mask)
    expected = branch.norm(plain)
    found = branch(x, offset, mask)
    towards = torch.randn_like(found)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    gradients = (torch.autograd.grad(result, given, towards) for result in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_runs_in_half_precision() -> None:
    layer, maps = random_layer().float(), [m.float() for m in random_maps(ODD)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(maps)
    for ours, exact in zip(found, layer(maps), strict=True):
        torch.testing.assert_close(ours.float(), exact, atol=0.1, rtol=0.1)
