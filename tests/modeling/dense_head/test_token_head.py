"""The head's outputs by the formulas in tests/reference/glip/README.md."""

import math

import grounding_dino  # noqa: F401
from grounding_dino.modeling.dense_head.token_head import TokenHead
from grounding_dino.structures import DensePredictions, TextFeatures

import pytest
import torch
from torch import Tensor

DIM, TEXT_DIM, TOKENS = 6, 5, 4
SIZES = [(3, 4), (2, 2), (1, 1)]


def random_head(dtype: torch.dtype = torch.float64) -> TokenHead:
    torch.manual_seed(0)
    head = TokenHead(DIM, TEXT_DIM, len(SIZES)).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return head


def random_inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], TextFeatures]:
    """Two pictures; the second one's last token is padding."""
    torch.manual_seed(1)
    maps = [torch.randn(2, DIM, h, w, dtype=dtype) for h, w in SIZES]
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, -1] = True
    tokens = torch.randn(2, TOKENS, TEXT_DIM, dtype=dtype)
    positions = torch.arange(TOKENS).expand(2, -1)
    return maps, TextFeatures(tokens, padding, ~padding[:, None].expand(-1, TOKENS, -1), positions)


def run(head: TokenHead, maps: list[Tensor], text: TextFeatures) -> DensePredictions:
    return head(maps, text.embeddings, text)


def test_equals_the_formulas() -> None:
    head, (maps, text) = random_head(), random_inputs()
    found = run(head, maps, text)
    assert found.sizes == tuple(SIZES)
    for level, (x, (height, width)) in enumerate(zip(maps, SIZES)):
        for picture in range(2):
            for row in range(height):
                for column in range(width):
                    place, feature = row * width + column, x[picture, :, row, column]
                    scale = head.level_scales[level]
                    box = scale * (head.box.weight[:, :, 0, 0] @ feature + head.box.bias)
                    torch.testing.assert_close(found.box_deltas[level][picture, place], box)
                    centre = head.centerness.weight[0, :, 0, 0] @ feature + head.centerness.bias[0]
                    torch.testing.assert_close(found.centerness[level][picture, place], centre)
                    for token in range(TOKENS):
                        e = text.embeddings[picture, token] / text.embeddings[picture, token].norm()
                        key = head.text_projection.weight @ (e / 2) + head.text_projection.bias
                        logit = feature @ key / head.log_scale.exp() + e @ head.text_bias + head.bias
                        if text.padding_mask[picture, token]:
                            logit = logit.new_tensor([-math.inf])
                        torch.testing.assert_close(found.token_logits[level][picture, place, token], logit[0])


def test_a_new_head_gives_every_token_a_hundredth_and_a_box_like_the_anchor() -> None:
    torch.manual_seed(0)
    maps, text = random_inputs(torch.float32)
    head = TokenHead(DIM, TEXT_DIM, len(SIZES))
    found = run(head, [torch.zeros_like(m) for m in maps], text)
    for logits, deltas in zip(found.token_logits, found.box_deltas):
        torch.testing.assert_close(logits[0].sigmoid(), torch.full_like(logits[0], 0.01))
        assert deltas.eq(0).all()
    assert max(deltas.abs().max() for deltas in run(head, maps, text).box_deltas) < 0.2


def test_logits_are_limited_to_what_float16_holds() -> None:
    head, (maps, text) = random_head(), random_inputs()
    found = run(head, [m * 1e9 for m in maps], text)
    logits = torch.cat([level[0].flatten() for level in found.token_logits])
    assert set(logits.tolist()) == {-50000.0, 50000.0}
    assert logits.half().isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_padding_of_zeros_leaves_gradients_finite(dtype: torch.dtype) -> None:
    """It has no direction (the smallest divisor of a norm is 0 in float16), and -inf must not reach a gradient."""
    head, (maps, text) = random_head(dtype), random_inputs(dtype)
    with torch.no_grad():
        text.embeddings[1, -1] = 0
    leaves = [*(m.requires_grad_() for m in maps), text.embeddings.requires_grad_()]
    found = run(head, maps, text)
    total = sum(logits[logits.isfinite()].float().sigmoid().sum() for logits in found.token_logits)
    (total + sum(part.float().square().sum() for part in (*found.box_deltas, *found.centerness))).backward()
    assert all(logits[1, :, -1].eq(-math.inf).all() for logits in found.token_logits)
    assert all(logits[:, :, :-1].isfinite().all() for logits in found.token_logits)
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    assert text.embeddings.grad is not None and text.embeddings.grad[1, -1].eq(0).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_near_float32(dtype: torch.dtype) -> None:
    head, (maps, text) = random_head(torch.float32), random_inputs(torch.float32)
    exact = run(head, maps, text)
    with torch.autocast("cpu", dtype=dtype):
        found = run(head, maps, text)
    for ours, expected in zip(found.token_logits + found.box_deltas, exact.token_logits + exact.box_deltas):
        torch.testing.assert_close(ours.float(), expected, atol=16 * torch.finfo(dtype).eps, rtol=0)
