"""The deformable attention module against a loop over queries, heads, levels and points."""

import math

import grounding_dino  # noqa: F401
from grounding_dino.layers.ms_deform_attn import MSDeformAttn

import pytest
import torch
from torch import Tensor

DIM, LEVELS, HEADS, POINTS = 8, 2, 2, 3
SHAPES = [(3, 4), (2, 2)]


def bilinear(feature: Tensor, x: float, y: float) -> Tensor:
    """The value of `feature` (h, w, c) at pixel coordinates whose cell centres are whole numbers; 0 outside."""
    total = torch.zeros(feature.shape[-1], dtype=feature.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < feature.shape[0] and 0 <= column < feature.shape[1]:
                total += feature[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def loop(module: MSDeformAttn, query: Tensor, reference: Tensor, value: Tensor, padded: Tensor | None) -> Tensor:
    values = module.value_proj(value)
    if padded is not None:
        values = values * ~padded[..., None]
    offsets = module.sampling_offsets(query).view(*query.shape[:2], HEADS, LEVELS, POINTS, 2)
    weights = module.attention_weights(query).view(*query.shape[:2], HEADS, -1).softmax(-1)
    weights = weights.view(*query.shape[:2], HEADS, LEVELS, POINTS)
    out = torch.zeros(*query.shape[:2], HEADS, DIM // HEADS, dtype=value.dtype)
    for b in range(len(query)):
        maps = [m.view(h, w, HEADS, -1) for m, (h, w) in zip(values[b].split([h * w for h, w in SHAPES]), SHAPES)]
        for q in range(query.shape[1]):
            for head in range(HEADS):
                for level, (h, w) in enumerate(SHAPES):
                    for point in range(POINTS):
                        place, offset = reference[b, q, level], offsets[b, q, head, level, point]
                        if len(place) == 2:
                            x, y = place[0] + offset[0] / w, place[1] + offset[1] / h
                        else:
                            x, y = place[:2] + offset / POINTS * place[2:] / 2
                        sample = bilinear(maps[level][:, :, head], float(x) * w - 0.5, float(y) * h - 0.5)
                        out[b, q, head] += weights[b, q, head, level, point] * sample
    return module.output_proj(out.flatten(2))


def arguments(coordinates: int) -> tuple[MSDeformAttn, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    module = MSDeformAttn(DIM, LEVELS, HEADS, POINTS).double()
    with torch.no_grad():
        module.sampling_offsets.weight.normal_(std=0.3)
        module.attention_weights.weight.normal_(std=0.5)
    tokens = sum(h * w for h, w in SHAPES)
    query, value = torch.randn(2, 5, DIM).double(), torch.randn(2, tokens, DIM).double()
    return module, query, torch.rand(2, 5, LEVELS, coordinates).double(), value


def layout() -> tuple[Tensor, Tensor]:
    return torch.tensor(SHAPES), torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("with_padding", [False, True])
def test_equals_loop(coordinates: int, with_padding: bool) -> None:
    module, query, reference, value = arguments(coordinates)
    padded = torch.rand(value.shape[:2]) < 0.3 if with_padding else None
    with torch.no_grad():
        ours = module(query, reference, value, *layout(), padded)
        torch.testing.assert_close(ours, loop(module, query, reference, value, padded))


def test_float32_uses_the_kernel_to_the_same_end() -> None:
    module, query, reference, value = arguments(4)
    with torch.no_grad():
        expected = module(query, reference, value, *layout())
        ours = module.float()(query.float(), reference.float(), value.float(), *layout())
    torch.testing.assert_close(ours, expected.float(), atol=1e-5, rtol=1e-5)


def test_padded_values_do_not_count() -> None:
    module, query, reference, value = arguments(2)
    padded = torch.rand(value.shape[:2]) < 0.3
    other = value + padded[..., None] * 100.0
    assert torch.equal(
        module(query, reference, value, *layout(), padded), module(query, reference, other, *layout(), padded)
    )


def test_starts_looking_around_evenly() -> None:
    module = MSDeformAttn(16, 2, 4, 3)
    offsets = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        for level in range(2):
            torch.testing.assert_close(offsets[:, level, point], directions * (point + 1), atol=1e-6, rtol=0)
    assert not module.attention_weights.weight.any() and not module.sampling_offsets.weight.any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="embed_dim 10 is not a multiple of num_heads 4"):
        MSDeformAttn(10, 1, 4, 4)
    module, query, reference, value = arguments(2)
    with pytest.raises(ValueError, match="2 or 4 coordinates, not 3"):
        module(query, torch.rand(2, 5, LEVELS, 3).double(), value, *layout())
