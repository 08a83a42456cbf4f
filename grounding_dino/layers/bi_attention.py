"""Attention in both directions between image and text tokens (GLIP, section 3.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

from grounding_dino.layers.blocks import block_of, key_mask
from grounding_dino.layers.box_ops import as_float32_at_least
from grounding_dino.ops.linear import affine

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FoldedText(NamedTuple):
    """Text with the image's projections multiplied in."""

    keys: Tensor  # (B, heads * T, C)
    offset: Tensor  # (B, heads * T): of the scores
    values: Tensor  # (B, heads * T, C)
    bias: Tensor  # (C,): of what image tokens learn


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
        folded = self._fold(keys, values, image.dtype)
        # float16 cannot hold the sums of a block's tokens before they are divided
        if block_of(image) and image_padding_mask is None and image.dtype != torch.float16:
            to_image, pooled = self._read_in_blocks(image, folded, text_padding_mask)
        else:
            to_image, pooled = self._read(image, folded, image_padding_mask, text_padding_mask)
        return to_image, self.out_text(self._image_values(pooled))

    def _folds(self, num_tokens: int) -> bool:
        """Whether folding is possible, and less work: heads * T columns against a projection to `embed_dim`."""
        layers = (self.query_image, self.value_image, self.out_image)
        if any(type(layer) is not nn.Linear for layer in layers) or (self.training and self.dropout):
            return False  # an adapter has no weight of its own to fold; dropout drops a head's bias too
        width, dim = self.query_image.weight.shape
        return self.num_heads * num_tokens * dim <= width * (dim + num_tokens)

    def _fold(self, keys: Tensor, values: Tensor, dtype: torch.dtype) -> _FoldedText:
        """x W_q k as x (W_q k), and (P v) W_o as P (v W_o): text takes in the image's projections."""
        with torch.autocast(keys.device.type, enabled=False):  # small products, whose rounding all tokens would share
            keys = as_float32_at_least(keys) * keys.shape[-1] ** -0.5
            weight, bias = (as_float32_at_least(p).unflatten(0, (self.num_heads, -1)) for p in _of(self.query_image))
            out = as_float32_at_least(self.out_image.weight).unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)
            return _FoldedText(
                keys=(keys @ weight).flatten(1, 2).to(dtype),
                offset=(keys @ bias[..., None]).flatten(1).to(dtype),
                values=(as_float32_at_least(values) @ out).flatten(1, 2).to(dtype),
                bias=self.out_image.bias.to(dtype),
            )

    def _read(
        self,
        image: Tensor,
        text: _FoldedText,
        image_padding_mask: Tensor | None,
        text_padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What image tokens learn (B, S, C), and the sums of image tokens that text tokens read (B, heads * T, C)."""
        scores = torch.baddbmm(text.offset[:, None], image, text.keys.mT)  # (B, S, heads * T)
        to_image = torch.baddbmm(text.bias, self._shares_of_text(scores, text_padding_mask), text.values)
        if image_padding_mask is not None:
            scores = scores.masked_fill(image_padding_mask[..., None], -math.inf)
        shares = as_float32_at_least(scores).softmax(1).to(scores.dtype)
        return to_image, shares.mT @ image

    def _shares_of_text(self, scores: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Scores (B, S, heads * T) -> the share of each text token in what a head reads, in the same shape."""
        scores = scores.unflatten(-1, (self.num_heads, -1))
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[:, None, None], -math.inf)
        return as_float32_at_least(scores).softmax(-1).flatten(2).to(scores.dtype)

    def _read_in_blocks(
        self, image: Tensor, text: _FoldedText, text_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `_read`, for some thousand image tokens of a picture at a time, whose scores stay in the cache."""
        read, pooled = [], []
        for i, tokens in enumerate(image):
            mask = None if text_padding_mask is None else text_padding_mask[i : i + 1]
            offset, keys, values = text.offset[i], text.keys[i], text.values[i].T.contiguous()
            sums, totals, tops = [], [], []
            for block in tokens.split(block_of(image)):
                scores = affine(block, keys, offset)  # (block, heads * T)
                read.append(affine(self._shares_of_text(scores[None], mask)[0], values, text.bias))
                scores = as_float32_at_least(scores)
                tops.append(scores.amax(0))
                powers = (scores - tops[-1]).exp_()
                totals.append(powers.sum(0))
                sums.append(as_float32_at_least(powers.to(block.dtype).T @ block))
            rescale = (torch.stack(tops) - torch.stack(tops).amax(0)).exp()  # a softmax of all from those of blocks
            total = (rescale * torch.stack(totals)).sum(0)
            pooled.append((rescale[..., None] * torch.stack(sums)).sum(0) / total[:, None])
        return torch.cat(read).view_as(image), torch.stack(pooled).to(image.dtype)

    def _image_values(self, pooled: Tensor) -> Tensor:
        """P (x W_v) as (P x) W_v: image tokens were summed, and are projected now."""
        weight, bias = (p.unflatten(0, (self.num_heads, -1)) for p in _of(self.value_image))
        attended = pooled.unflatten(1, (self.num_heads, -1)) @ weight.mT + bias[:, None]  # (B, heads, T, d)
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
