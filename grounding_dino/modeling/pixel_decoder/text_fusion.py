"""The parts of the encoder that look at text: image/text fusion and the text's own layer."""

from __future__ import annotations

from grounding_dino.layers.bi_attention import BiAttention
from grounding_dino.layers.blocks import FeedForward, MultiheadAttention, StochasticDepth
from grounding_dino.layers.position_encoding import sine_embedding
from grounding_dino.structures import TextFeatures

import torch
from torch import Tensor, nn


class TextFusionLayer(nn.Module):
    """Bi-attention as a residual on the *normed* tokens, each branch scaled by a learned gamma (GLIP).

    Text tokens have `text_dim` channels, by default as many as the image's, `embed_dim`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        attention_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        init_scale: float = 1e-4,
        text_dim: int | None = None,
    ) -> None:
        super().__init__()
        text_dim = embed_dim if text_dim is None else text_dim
        self.norm_image = nn.LayerNorm(embed_dim)
        self.norm_text = nn.LayerNorm(text_dim)
        self.attention = BiAttention(embed_dim, text_dim, attention_dim, num_heads, dropout)
        self.gamma_image = nn.Parameter(torch.full((embed_dim,), init_scale))
        self.gamma_text = nn.Parameter(torch.full((text_dim,), init_scale))
        self.drop_path = StochasticDepth(drop_path) if drop_path else nn.Identity()

    def forward(
        self, image: Tensor, text: Tensor, image_padding_mask: Tensor | None, text_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`image` (B, S, C) and `text` (B, T, C) -> both, each informed by the other."""
        image, text = self.norm_image(image), self.norm_text(text)
        image_delta, text_delta = self.attention(image, text, image_padding_mask, text_padding_mask)
        image = _added(image, self.gamma_image, self.drop_path(image_delta))
        return image, _added(text, self.gamma_text, self.drop_path(text_delta))


def _added(tokens: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    """`tokens + gamma * delta` in the tokens' precision: a parameter in float32 would make them so under autocast."""
    return torch.addcmul(tokens, gamma.to(tokens.dtype), delta.to(tokens.dtype))


class TextLayer(nn.Module):
    """A post-norm transformer layer over the text, attending where the text's own attention mask allows it.

    By default as in Grounding DINO; `ffn` and `norm_eps` make it a layer of BERT.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn: FeedForward,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.self_attention = MultiheadAttention(embed_dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(embed_dim, norm_eps)
        self.ffn = ffn
        self.norm2 = nn.LayerNorm(embed_dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, attention_mask: Tensor, position: Tensor | None = None) -> Tensor:
        """`tokens` (B, T, C) -> the same shape; `attention_mask` (B, T, T); `position` (B, T, C), None adds none."""
        query = tokens if position is None else tokens + position.to(tokens.dtype)
        attended = self.self_attention(query, query, tokens, attention_mask[:, None])
        tokens = self.norm1(tokens + self.dropout(attended))
        return self.norm2(tokens + self.dropout(self.ffn(tokens)))


def text_position_embedding(text: TextFeatures) -> Tensor:
    """(B, T, C): the sine embedding of each token's place in its phrase (Grounding DINO)."""
    return sine_embedding(text.position_ids[..., None], text.embeddings.shape[-1])
