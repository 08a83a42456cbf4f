"""Attention in both directions between image and text tokens (GLIP, section 3.2)."""

from __future__ import annotations

from grounding_dino.layers.blocks import key_mask

import torch.nn.functional as F
from torch import Tensor, nn


class BiAttention(nn.Module):
    """One score matrix, two softmaxes: image tokens read the text, text tokens read the image.

    The published code subtracts the batch's largest score and clamps to +-50000 before the softmax; a softmax does
    not change under a shift, so both are left to `scaled_dot_product_attention`.
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
        self, image: Tensor, text: Tensor, image_padding_mask: Tensor | None, text_padding_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`image` (B, S, C), `text` (B, T, C) -> what each learned from the other, in the same shapes."""
        q, k = self._heads(self.query_image(image)), self._heads(self.key_text(text))
        v_image, v_text = self._heads(self.value_image(image)), self._heads(self.value_text(text))
        dropout = self.dropout if self.training else 0.0
        image_mask = None if image_padding_mask is None else key_mask(image_padding_mask)
        to_image = F.scaled_dot_product_attention(q, k, v_text, key_mask(text_padding_mask), dropout)
        to_text = F.scaled_dot_product_attention(k, q, v_image, image_mask, dropout)
        return self.out_image(to_image.transpose(1, 2).flatten(2)), self.out_text(to_text.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, tokens, embed_dim / heads)
