"""Attention, feed-forward and MLP against PyTorch's own modules."""

from grounding_dino.layers import blocks
from grounding_dino.layers.blocks import MLP, FeedForward, MultiheadAttention, StochasticDepth, in_blocks, key_mask

import pytest
import torch
import torchvision
from torch import Tensor, nn


def both_attentions(dim: int = 16, heads: int = 4) -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    ours, theirs = MultiheadAttention(dim, heads), nn.MultiheadAttention(dim, heads, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
        theirs.in_proj_weight.copy_(ours.in_proj.weight)
        theirs.in_proj_bias.copy_(ours.in_proj.bias)
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    return ours, theirs


@pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
def test_attention_equals_torch(same: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = both_attentions()
    query, value = torch.randn(2, 5, 16), torch.randn(2, 5 if same else 7, 16)
    key = query if same else torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value, need_weights=False)[0])


def test_attention_masks_equal_torch() -> None:
    torch.manual_seed(1)
    ours, theirs = both_attentions()
    query, key = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    expected = theirs(query, key, key, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, key, key_mask(padding)), expected)
    allowed = torch.rand(5, 7) > 0.4
    allowed[:, 0] = True
    expected = theirs(query, key, key, attn_mask=~allowed, need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, key, allowed), expected)


def test_attention_drops_out_in_training_only() -> None:
    torch.manual_seed(2)
    attention, x = MultiheadAttention(16, 4, dropout=0.5), torch.randn(1, 9, 16)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    attention.eval()
    assert torch.equal(attention(x, x, x), attention(x, x, x))


def test_attention_refuses_uneven_heads() -> None:
    with pytest.raises(ValueError, match="embed_dim 10 is not a multiple of num_heads 4"):
        MultiheadAttention(10, 4)


def test_mlp_and_feed_forward() -> None:
    torch.manual_seed(3)
    mlp, x = MLP(4, 6, 2, 3), torch.randn(3, 4)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(x), third(second(first(x).relu()).relu()))
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(6, 4), (6, 6), (2, 6)]
    ffn = FeedForward(4, 6).eval()
    torch.testing.assert_close(ffn(x), ffn[2](ffn[0](x).relu()))
    assert set(ffn.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_tokens_are_treated_in_blocks_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    monkeypatch.setattr(blocks, "TOKENS_PER_THREAD", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer, x, bias = nn.Linear(4, 5), torch.randn(2, 7, 4), torch.randn(1, 7, 5).expand(2, 7, 5)
    rows: list[int] = []

    def function(x: Tensor, bias: Tensor) -> Tensor:
        rows.append(len(x))
        return layer(x) + bias

    with torch.no_grad():
        found = in_blocks(function, x, bias)
        whole = in_blocks(function, x[:, :3], bias[:, :3])
    assert rows == [6, 6, 2, 2]
    torch.testing.assert_close(found, layer(x) + bias)
    assert whole.shape == (2, 3, 5)
    assert in_blocks(function, x, bias).requires_grad and len(rows) == 5


def test_masks() -> None:
    padding = torch.tensor([[False, True]])
    assert key_mask(padding).tolist() == [[[[True, False]]]]


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_stochastic_depth_equals_torchvision(p: float, training: bool) -> None:
    x = torch.randn(16, 3, 2)
    torch.manual_seed(0)
    ours = StochasticDepth(p).train(training)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, torchvision.ops.StochasticDepth(p, "row").train(training)(x), rtol=0, atol=0)
