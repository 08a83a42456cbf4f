"""Bi-attention against the published formula: largest score subtracted, scores clamped, two softmaxes."""

import math

import grounding_dino  # noqa: F401
from grounding_dino.layers import bi_attention
from grounding_dino.layers.bi_attention import BiAttention

import numpy as np
import pytest
import torch
from torch import Tensor

CLAMP = 50000.0


def published(module: BiAttention, image: Tensor, text: Tensor, padded: Tensor | None, text_padded: Tensor):
    """GLIP's steps in float64, for one head after the other."""
    weights = {name: p.detach().double().numpy() for name, p in module.named_parameters()}

    def project(x: Tensor, name: str) -> np.ndarray:
        return x.double().numpy() @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def softmax(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], module.num_heads, -1).transpose(0, 2, 1, 3)

    query, key = heads(project(image, "query_image")), heads(project(text, "key_text"))
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(0, 1, 3, 2)  # (B, heads, S, T)
    scores = np.clip(scores - scores.max(), -CLAMP, CLAMP)
    of_text = scores.transpose(0, 1, 3, 2)
    of_text = np.clip(of_text - of_text.max(-1, keepdims=True), -CLAMP, CLAMP)
    if padded is not None:
        of_text = np.where(padded.numpy()[:, None, None], -np.inf, of_text)
    of_image = np.where(text_padded.numpy()[:, None, None], -np.inf, scores)
    to_image = softmax(of_image) @ heads(project(text, "value_text"))
    to_text = softmax(of_text) @ heads(project(image, "value_image"))
    joined = [x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1) for x in (to_image, to_text)]
    return [x @ weights[f"{n}.weight"].T + weights[f"{n}.bias"] for x, n in zip(joined, ("out_image", "out_text"))]


def inputs() -> tuple[BiAttention, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    module = BiAttention(6, 10, 8, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.6)
    padded = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    text_padded = torch.tensor([[False] * 3 + [True], [False] * 4])
    return module, torch.randn(2, 7, 6), torch.randn(2, 4, 10), padded, text_padded


@pytest.mark.parametrize("with_padding", [False, True])
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_equals_published_formula(with_padding: bool, size: float) -> None:
    module, image, text, padded, text_padded = inputs()
    mask = padded if with_padding else None
    for ours, expected in zip(
        module(image * size, text * size, mask, text_padded),
        published(module, image * size, text * size, mask, text_padded),
    ):
        np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_of_image_tokens_equal_published_formula(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bi_attention, "block_of", lambda _: block)
    module, image, text, _, text_padded = inputs()
    with torch.no_grad():
        found = module(image * 5, text * 5, None, text_padded)
    for ours, expected in zip(found, published(module, image * 5, text * 5, None, text_padded)):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sums_of_many_tokens_stay_finite_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bi_attention, "block_of", lambda _: 4000)
    module, _, text, _, _ = inputs()
    image = torch.randn(2, 4000, 6) / 100 + 30
    module.query_image.weight.zero_()  # so that all tokens have the same share
    expected = module(image, text, None, None)[1]
    found = module.half()(image.half(), text.half(), None, None)[1]
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.05)


def test_gradient_equals_that_of_plain_softmaxes() -> None:
    module, image, text, padded, text_padded = inputs()
    module.double()
    leaves = [image.double().requires_grad_(), text.double().requires_grad_()]

    def plain(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], 2, -1).transpose(1, 2)

        scores = heads(module.query_image(image)) @ heads(module.key_text(text)).mT / 2
        scores = (scores - scores.max()).clamp(-CLAMP, CLAMP)
        of_image = scores.masked_fill(text_padded[:, None, None], -math.inf).softmax(-1)
        of_text = scores.mT.masked_fill(padded[:, None, None], -math.inf).softmax(-1)
        to_image = (of_image @ heads(module.value_text(text))).transpose(1, 2).flatten(2)
        to_text = (of_text @ heads(module.value_image(image))).transpose(1, 2).flatten(2)
        return module.out_image(to_image), module.out_text(to_text)

    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(x.square().sum() for x in outputs), [*leaves, *module.parameters()])

    expected = gradients(plain(*leaves))
    torch.testing.assert_close(gradients(module(*leaves, padded, text_padded)), expected)


def test_refuses_uneven_heads() -> None:
    with pytest.raises(ValueError, match="embed_dim 10 is not a multiple of num_heads 4"):
        BiAttention(8, 8, 10, 4)
