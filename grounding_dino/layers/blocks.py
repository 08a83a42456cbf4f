"""Small building blocks shared by encoder, decoder and heads."""

from __future__ import annotations

from collections.abc import Callable

from grounding_dino.ops.linear import affine, linear

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS_PER_THREAD = 2048  # of a block


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them; the sub-modules are `layers.{i}`."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(dims[:-1], dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = linear(layer, x, "relu")
        return linear(self.layers[-1], x)


class FeedForward(nn.Sequential):
    """Linear, `activation` ("relu" or "gelu"), dropout, linear: the position-wise network of a transformer layer.

    Its weights are `0` and `2`.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, dropout: float = 0.0, activation: str = "relu") -> None:
        super().__init__(nn.Linear(embed_dim, ffn_dim), nn.Dropout(dropout), nn.Linear(ffn_dim, embed_dim))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) -> the same shape."""
        return in_blocks(self._widen, x)

    def _widen(self, x: Tensor) -> Tensor:
        first, dropout, last = self
        return linear(last, dropout(linear(first, x, self.activation)))


class StochasticDepth(nn.Module):
    """Drops a residual branch in training, for each sample with probability `p` (Huang et al., 2016).

    The draws are those of torchvision's module of that name (mode "row"), which takes seconds to import.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        if not self.training or self.p == 0.0:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1.0 - self.p)
        return x * (kept / (1.0 - self.p) if self.p < 1.0 else kept)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class MultiheadAttention(nn.Module):
    """Multi-head attention over `scaled_dot_product_attention`, batch first.

    `in_proj` holds the query, key and value projections as consecutive rows, as the published checkpoints do.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Attend from `query` (B, Q, C) to `key`, `value` (B, T, C).

        `attention_mask` is boolean, True where attention is allowed, broadcastable to (B, heads, Q, T).
        """
        if query is key:
            q, k = self._project(query, 0, 2).chunk(2, dim=-1)
        else:
            q, k = self._project(query, 0, 1), self._project(key, 1, 2)
        v = self._project(value, 2, 3)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, ., C/heads)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=dropout)
        return linear(self.out_proj, out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, first: int, last: int) -> Tensor:
        rows = slice(first * self.embed_dim, last * self.embed_dim)
        if type(self.in_proj) is not nn.Linear:  # an adapter around it, which has no rows of a weight to give
            return self.in_proj(x)[..., rows]
        return affine(x, self.in_proj.weight[rows], self.in_proj.bias[rows])


def block_of(x: Tensor) -> int:
    """How many tokens of `x` to treat at a time; 0 for all.

    At inference on a CPU, what is computed of some thousand tokens stays in the cache and its memory is used again;
    fewer would lose time in matrix products. GPUs, gradients and traces want all at once.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return 0
    return TOKENS_PER_THREAD * torch.get_num_threads()


def in_blocks(function: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """`function(*tokens)`, of tensors (..., C) whose rows it treats one by one, in blocks of `block_of`.

    The results have as many rows.
    """
    block = block_of(tokens[0])
    if not block:  # before rows are counted, which would fix a traced graph's sizes
        return function(*tokens)
    shape = tokens[0].shape[:-1]
    count = shape.numel()
    if block >= count:
        return function(*tokens)
    rows = [x.reshape(count, x.shape[-1]) for x in tokens]
    first = function(*(x[:block] for x in rows))
    out = first.new_empty(count, first.shape[-1])  # blocks laid together afterwards would be there twice
    out[:block] = first
    for start in range(block, count, block):
        out[start : start + block] = function(*(x[start : start + block] for x in rows))
    return out.view(*shape, -1)


def key_mask(padding_mask: Tensor) -> Tensor:
    """(B, T) padding mask -> (B, 1, 1, T) attention mask: every query may attend to every key that is not padding."""
    return ~padding_mask[:, None, None, :]
