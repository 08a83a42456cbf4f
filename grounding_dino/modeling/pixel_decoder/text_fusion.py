"""The parts of the encoder that look at text: image/text fusion and the text's own layer."""

from __future__ import annotations

from grounding_dino.layers.bi_attention import BiAttention
from grounding_dino.layers.blocks import FeedForward, MultiheadAttention
from grounding_dino.layers.position_encoding import sine_embedding
from grounding_dino.structures import TextFeatures

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class TextFusionLayer(nn.Module):
    """Bi-attention as a residual on the *normed* tokens, each branch scaled by a learned gamma (GLIP)."""

    def __init__(
        self,
        *,
        embed_dim: int,
        attention_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        init_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(embed_dim)
        self.norm_text = nn.LayerNorm(embed_dim)
        self.attention = BiAttention(embed_dim, embed_dim, attention_dim, num_heads, dropout)
        self.gamma_image = nn.Parameter(torch.full((embed_dim,), init_scale))
        self.gamma_text = nn.Parameter(torch.full((embed_dim,), init_scale))
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(
        self, image: Tensor, text: Tensor, image_padding_mask: Tensor | None, text_padding_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`image` (B, S, C) and `text` (B, T, C) -> both, each informed by the other."""
        image, text = self.norm_image(image), self.norm_text(text)
        image_delta, text_delta = self.attention(image, text, image_padding_mask, text_padding_mask)
        image = image + self.drop_path(self.gamma_image * image_delta)
        text = text + self.drop_path(self.gamma_text * text_delta)
        return image, text


class TextLayer(nn.Module):
    """A post-norm transformer layer over the text, attending inside each phrase."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attention = MultiheadAttention(embed_dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: TextFeatures, tokens: Tensor) -> Tensor:
        """`tokens` (B, T, C) are this layer's input; `text` gives their positions and attention mask."""
        position = sine_embedding(text.position_ids[..., None], tokens.shape[-1]).to(tokens.dtype)
        query = tokens + position
        attended = self.self_attention(query, query, tokens, text.attention_mask[:, None])
        tokens = self.norm1(tokens + self.dropout(attended))
        return self.norm2(tokens + self.dropout(self.ffn(tokens)))
