"""Fusion as a scaled residual on normed tokens, and the text's own layer, which can be one of BERT."""

import grounding_dino  # noqa: F401
from grounding_dino.layers.blocks import FeedForward
from grounding_dino.modeling.pixel_decoder.text_fusion import TextFusionLayer, TextLayer

import pytest
import torch
from torch import Tensor
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer


def test_residual_on_normed_tokens() -> None:
    torch.manual_seed(0)
    layer = TextFusionLayer(embed_dim=8, attention_dim=16, num_heads=2, init_scale=0.5)
    image, text, padded = torch.randn(1, 6, 8), torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool)
    new_image, new_text = layer(image, text, None, padded)
    normed = layer.norm_image(image), layer.norm_text(text)
    deltas = layer.attention(*normed, None, padded)
    torch.testing.assert_close(new_image, normed[0] + 0.5 * deltas[0])
    torch.testing.assert_close(new_text, normed[1] + 0.5 * deltas[1])


def test_drop_path_leaves_whole_pictures_unfused_in_training() -> None:
    torch.manual_seed(0)
    layer = TextFusionLayer(embed_dim=8, attention_dim=16, num_heads=2, init_scale=0.5, drop_path=0.5)
    image, text = torch.randn(64, 2, 8), torch.randn(64, 2, 8)
    padded = torch.zeros(64, 2, dtype=torch.bool)
    dropped = (layer(image, text, None, padded)[0] == layer.norm_image(image)).flatten(1)
    assert (dropped.all(1) | ~dropped.any(1)).all() and 16 < dropped.all(1).sum() < 48
    assert not (layer.eval()(image, text, None, padded)[0] == layer.norm_image(image)).flatten(1).all(1).any()


# ---------------------------------------------------------------------------------------- GLIP's fusion, slowly


def shaken(layer: torch.nn.Module) -> torch.nn.Module:
    """With weights in which nothing is zero or one."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def glip_fusion() -> TextFusionLayer:
    torch.manual_seed(0)
    layer = TextFusionLayer(embed_dim=8, text_dim=12, attention_dim=16, num_heads=2, init_scale=1 / 6)
    assert layer.gamma_image.tolist() == pytest.approx([1 / 6] * 8) and layer.gamma_text.shape == (12,)
    return shaken(layer).eval()  # type: ignore[return-value]


def slow_fusion(layer: TextFusionLayer, image: Tensor, text: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
    """The published computation, head by head (tests/reference/glip/README.md, "VLFuse")."""
    image, text = layer.norm_image(image), layer.norm_text(text)
    attention = layer.attention
    size = attention.query_image.out_features // attention.num_heads
    image_parts, text_parts = [], []
    for head in range(attention.num_heads):
        rows = slice(head * size, (head + 1) * size)
        query = (attention.query_image(image) * size**-0.5)[..., rows]
        key, text_value = attention.key_text(text)[..., rows], attention.value_text(text)[..., rows]
        scores = (query @ key.mT).clamp(-50_000, 50_000)  # (B, S, T)
        of_text = scores.mT - scores.mT.amax(-1, keepdim=True)
        of_text = of_text.clamp(-50_000, 50_000).softmax(-1)
        text_parts.append(of_text @ attention.value_image(image)[..., rows])
        of_image = scores.masked_fill(padded[:, None], -9e15).softmax(-1)
        image_parts.append(of_image @ text_value)
    image = image + layer.gamma_image * attention.out_image(torch.cat(image_parts, -1))
    return image, text + layer.gamma_text * attention.out_text(torch.cat(text_parts, -1))


def fusion_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Image (2, 9, 8), text (2, 5, 12) and its padding: two tokens of the second."""
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    return torch.randn(2, 9, 8), torch.randn(2, 5, 12), padded


@torch.no_grad()
def test_text_of_its_own_width_is_fused_as_published() -> None:
    layer = glip_fusion()
    image, text, padded = fusion_inputs()
    new_image, new_text = layer(image, text, None, padded)
    assert (new_image.shape, new_text.shape) == (image.shape, text.shape)
    slow_image, slow_text = slow_fusion(layer, image, text, padded)
    torch.testing.assert_close(new_image, slow_image, atol=1e-5, rtol=0)
    torch.testing.assert_close(new_text, slow_text, atol=1e-5, rtol=0)  # padded tokens too
    assert (new_image - layer.norm_image(image)).abs().amax() > 0.1  # there is something to compare


@torch.no_grad()
def test_pictures_do_not_see_padded_text() -> None:
    layer = glip_fusion()
    image, text, padded = fusion_inputs()
    expected = layer(image, text, None, padded)
    text[1, 3:] = 100 * torch.randn(2, 12)
    changed = layer(image, text, None, padded)
    assert torch.equal(changed[0], expected[0]) and torch.equal(changed[1][1, :3], expected[1][1, :3])
    alone = layer(image[1:], text[1:, :3], None, padded[1:, :3])
    torch.testing.assert_close(alone[0], expected[0][1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone[1], expected[1][1:, :3], atol=1e-5, rtol=0)


def test_gradient_reaches_both_sides() -> None:
    layer = glip_fusion()
    image, text, padded = fusion_inputs()
    image.requires_grad_()
    text.requires_grad_()
    new_image, new_text = layer(image, text, None, padded)
    (new_image.square().sum() + new_text.square().sum()).backward()
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in grads.values())
    assert image.grad is not None and image.grad.any(-1).all() and text.grad is not None
    (from_image,) = torch.autograd.grad(layer(image, text, None, padded)[0].square().sum(), text)
    assert from_image[0].any(-1).all() and from_image[1, :3].any(-1).all() and not from_image[1, 3:].any()


# -------------------------------------------------------------------------------------------- a layer of BERT


def bert_pair() -> tuple[BertLayer, TextLayer]:
    """One of `transformers`, and ours with its weights."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=24, attn_implementation="eager")
    theirs = shaken(BertLayer(config)).eval()
    ours = TextLayer(16, 4, FeedForward(16, 24, activation="gelu"), norm_eps=1e-12).eval()
    attention = theirs.attention
    parts = [attention.self.query, attention.self.key, attention.self.value]
    sources = {
        "self_attention.out_proj": attention.output.dense,
        "norm1": attention.output.LayerNorm,
        "ffn.0": theirs.intermediate.dense,
        "ffn.2": theirs.output.dense,
        "norm2": theirs.output.LayerNorm,
    }
    state = {f"{name}.{kind}": value for name, part in sources.items() for kind, value in part.state_dict().items()}
    for kind in ("weight", "bias"):
        state[f"self_attention.in_proj.{kind}"] = torch.cat([part.state_dict()[kind] for part in parts])
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("spread", [1.0, 1e-5], ids=["ordinary", "where the norm's epsilon counts"])
@torch.no_grad()
def test_a_text_layer_can_be_one_of_bert(spread: float) -> None:
    theirs, ours = bert_pair()
    if spread != 1:  # the norms then see next to nothing but their input
        for layer in (theirs.attention.output.dense, theirs.output.dense, ours.self_attention.out_proj, ours.ffn[2]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    tokens = spread * torch.randn(2, 6, 16)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    additive = torch.zeros(2, 1, 1, 6).masked_fill(~real[:, None, None], torch.finfo(torch.float32).min)
    expected = theirs(tokens, additive)
    expected = expected[0] if isinstance(expected, tuple) else expected  # transformers 4
    found = ours(tokens, real[:, None].expand(2, 6, 6))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # padding attends to itself in ours, which the other tokens do not see
    alone_in_padding = real[:, None] & real[..., None] | torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(ours(tokens, alone_in_padding)[real], expected[real], atol=1e-5, rtol=0)


def test_by_default_a_text_layer_is_grounding_dinos() -> None:
    """ReLU, torch's epsilon, and a position that only queries and keys have."""
    torch.manual_seed(0)
    layer = shaken(TextLayer(8, 2, FeedForward(8, 16)))
    tokens, position = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    mask = torch.eye(4, dtype=torch.bool)[None]  # each token reads its own value
    assert layer.norm1.eps == layer.norm2.eps == 1e-5
    value = layer.self_attention.out_proj(layer.self_attention._project(tokens, 2, 3))
    middle = layer.norm1(tokens + value)
    expected = layer.norm2(middle + layer.ffn[2](layer.ffn[0](middle).relu()))
    torch.testing.assert_close(layer(tokens, mask, position), expected)
    allowed = torch.ones(1, 4, 4, dtype=torch.bool)
    assert not torch.allclose(layer(tokens, allowed, position), layer(tokens, allowed))
