"""Attention in both directions between image and text tokens (GLIP, section 3.2)."""

from __future__ import annotations

import math

from grounding_dino.layers.blocks import key_mask
from grounding_dino.layers.box_ops import as_float32_at_least

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BiAttention(nn.Module):
    """One score matrix, two softmaxes: image tokens read the text, text tokens read the image.

    The published code subtracts the batch's largest score and clamps to +-50000 before the softmax; a softmax does
    not change under a shift, so both are left out.

    Image tokens are many and text tokens few, so the image's projections are not computed: products of matrices
    associate, and each head's part of a projection is multiplied with the text, or with the sum over image tokens,
    instead. `query_image`, `value_image` and `out_image` stay the parameters that checkpoints hold.
    """

    def __init__(self, image_dim: int, text_dim: int, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_image = nn.Linear(image_dim, embed_dim)
        self.key_text = nn.Linear(text_dim, embed_dim)
        self.value_image = nn.Linear(image_dim, embed_dim)
        self.value_text = nn.Linear(text_dim, embed_dim)
        self.out_image = nn.Linear(embed_dim, image_dim)
        self.out_text = nn.Linear(embed_dim, text_dim)
        for projection in self.children():
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self, image: Tensor, text: Tensor, image_padding_mask: Tensor | None, text_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`image` (B, S, C), `text` (B, T, C) -> what each learned from the other, in the same shapes.

        The padding masks (B, S) and (B, T) are None where there is no padding.
        """
        keys, values = self._heads(self.key_text(text)), self._heads(self.value_text(text))
        if not self._folds(text.shape[1]):
            return self._project(image, keys, values, image_padding_mask, text_padding_mask)
        image = image.to(keys.dtype)  # once, where autocast would do it for every product
        scores = self._scores(image, keys)  # (B, S, heads * T)
        to_text = self.out_text(self._read_image(scores, image, image_padding_mask))
        return self._read_text(scores, values, text_padding_mask), to_text

    def _folds(self, num_tokens: int) -> bool:
        """Whether folding is possible, and less work: heads * T columns against a projection to `embed_dim`."""
        layers = (self.query_image, self.value_image, self.out_image)
        if any(type(layer) is not nn.Linear for layer in layers) or (self.training and self.dropout):
            return False  # an adapter has no weight of its own to fold; dropout drops a head's bias too
        width, dim = self.query_image.weight.shape
        return self.num_heads * num_tokens * dim <= width * (dim + num_tokens)

    def _scores(self, image: Tensor, keys: Tensor) -> Tensor:
        """x W_q k as x (W_q k): the keys (B, heads, T, d) take in the queries' projection, and its bias."""
        with torch.autocast(image.device.type, enabled=False):  # small products, whose rounding all tokens would share
            keys = as_float32_at_least(keys) * keys.shape[-1] ** -0.5
            weight, bias = (as_float32_at_least(p).unflatten(0, (self.num_heads, -1)) for p in _of(self.query_image))
            folded = (keys @ weight).flatten(1, 2).to(image.dtype)  # (B, heads * T, C)
            offset = (keys @ bias[..., None]).flatten(1)[:, None].to(image.dtype)  # (B, 1, heads * T)
        return torch.baddbmm(offset, image, folded.mT)

    def _read_text(self, scores: Tensor, values: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(P v) W_o as P (v W_o), summed over heads in the same product."""
        with torch.autocast(scores.device.type, enabled=False):  # as in the scores
            weight = as_float32_at_least(self.out_image.weight).unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)
            folded = (as_float32_at_least(values) @ weight).flatten(1, 2).to(scores.dtype)  # (B, heads * T, C)
        scores = scores.unflatten(-1, (self.num_heads, -1))
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[:, None, None], -math.inf)
        shares = as_float32_at_least(scores).softmax(-1).flatten(2).to(scores.dtype)
        return torch.baddbmm(self.out_image.bias.to(scores.dtype), shares, folded)

    def _read_image(self, scores: Tensor, image: Tensor, padding_mask: Tensor | None) -> Tensor:
        """P (x W_v) as (P x) W_v: image tokens are summed before they are projected."""
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[..., None], -math.inf)
        shares = as_float32_at_least(scores).softmax(1).to(scores.dtype)
        pooled = (shares.mT @ image).unflatten(1, (self.num_heads, -1))  # (B, heads, T, C)
        weight, bias = (p.unflatten(0, (self.num_heads, -1)) for p in _of(self.value_image))
        attended = pooled @ weight.mT + bias[:, None]  # (B, heads, T, d)
        return attended.transpose(1, 2).flatten(2)

    def _project(
        self,
        image: Tensor,
        keys: Tensor,
        values: Tensor,
        image_padding_mask: Tensor | None,
        text_padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The same with every projection computed."""
        queries, image_values = self._heads(self.query_image(image)), self._heads(self.value_image(image))
        dropout = self.dropout if self.training else 0.0
        image_mask, text_mask = (
            None if mask is None else key_mask(mask) for mask in (image_padding_mask, text_padding_mask)
        )
        to_image = F.scaled_dot_product_attention(queries, keys, values, text_mask, dropout)
        to_text = F.scaled_dot_product_attention(keys, queries, image_values, image_mask, dropout)
        return self.out_image(to_image.transpose(1, 2).flatten(2)), self.out_text(to_text.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, tokens, embed_dim / heads)


def _of(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias
