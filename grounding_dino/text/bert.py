"""BERT (Devlin et al., 2018, https://arxiv.org/abs/1810.04805) without pooler, with any mask between tokens.

Parameters have the names that published files have, so that these, adapters and patterns in configurations fit.
"""

from __future__ import annotations

from grounding_dino.layers.blocks import in_blocks
from grounding_dino.ops.linear import linear

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-12
PADDING_ID = 0  # [PAD]: its row begins with zeros and gets no gradient


class Bert(nn.Module):
    """Word ids -> the last hidden state.

    Weights begin as the authors' do: normal with a standard deviation of 0.02, biases 0.

    Args:
        dropout: of embeddings, attention weights, and what layers add.

    Attributes:
        activation_checkpointing: in training, layers are computed again for their gradients instead of kept.

    Raises:
        ValueError: the hidden size is not a multiple of the number of heads.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        max_positions: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"MODEL.TEXT_ENCODER.HIDDEN_SIZE {hidden_size} is not a multiple of NUM_HEADS {num_heads}; change one"
            )
        self.vocabulary_size, self.max_positions, self.hidden_size = vocabulary_size, max_positions, hidden_size
        self.activation_checkpointing = False
        self.embeddings = BertEmbeddings(vocabulary_size, max_positions, hidden_size, dropout)
        layers = (BertLayer(hidden_size, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.apply(_initialize)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """The last hidden state (B, T, hidden size).

        Args:
            input_ids: (B, T) int64, rows of the vocabulary.
            attention_mask: (B, T, T) bool, True where the token of the row attends to that of the column. Every row has
                a True: padding attends to itself.
            position_ids: (B, T) int64, rows of the positions' table.
        """
        x = self.embeddings(input_ids, position_ids)
        mask = attention_mask[:, None]  # (B, 1, T, T): the same for all heads
        for layer in self.encoder["layer"].children():
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, mask, use_reentrant=False)
            else:
                x = layer(x, mask)
        return x


class BertEmbeddings(nn.Module):
    """The normed sum of what is learned for a word, its position, and the first of two sentences."""

    def __init__(self, vocabulary_size: int, max_positions: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary_size, hidden_size, padding_idx=PADDING_ID)
        self.position_embeddings = nn.Embedding(max_positions, hidden_size)
        self.token_type_embeddings = nn.Embedding(2, hidden_size)  # of which the second is never read here
        self.LayerNorm = nn.LayerNorm(hidden_size, NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(B, T) and (B, T) -> (B, T, hidden size)."""
        first_sentence = self.token_type_embeddings(torch.zeros_like(input_ids))
        x = self.word_embeddings(input_ids) + first_sentence + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


class BertLayer(nn.Module):
    """Self-attention and a feed-forward network with exact GELU, each added to its input and then normed."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "self": BertSelfAttention(hidden_size, num_heads, dropout),
                "output": BertOutput(hidden_size, hidden_size, dropout),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden_size, ffn_dim)})
        self.output = BertOutput(ffn_dim, hidden_size, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, T, hidden size) -> the same shape; `mask` (B, 1, T, T)."""
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return in_blocks(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.output(linear(self.intermediate["dense"], x, "gelu"), x)


class BertSelfAttention(nn.Module):
    """Multi-head attention among the tokens of a text; the layer behind the heads is the `BertOutput` that follows."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, T, hidden size) -> the heads' results, side by side, in the same shape; `mask` (B, 1, T, T)."""
        projections = self.query, self.key, self.value
        q, k, v = (linear(layer, x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in projections)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, heads, T, C / heads)
        return out.transpose(1, 2).flatten(2)


class BertOutput(nn.Module):
    """The last linear layer of a block, dropout, the block's input added, norm."""

    def __init__(self, in_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., in_features) and (..., hidden size) -> (..., hidden size)."""
        return self.LayerNorm(residual + self.dropout(linear(self.dense, x)))


def _initialize(module: nn.Module) -> None:
    """Norms are ones and zeros from the start."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
