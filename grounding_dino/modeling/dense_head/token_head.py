"""What a dense head says of every place: how well each text token fits, a box, and how central the place is in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grounding_dino.layers.box_ops import as_float32_at_least
from grounding_dino.structures import DensePredictions, TextFeatures

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PRIOR = 0.01  # share of places that fit a token, at the start of a training
_LARGEST = 50_000.0  # of the published models' logits, which float16 can hold


class TokenHead(nn.Module):
    """1 x 1 convolutions for boxes and centerness, and a dot product with every text token (GLIP, equation 3)."""

    def __init__(self, embed_dim: int, text_dim: int, num_levels: int) -> None:
        super().__init__()
        self.text_projection = nn.Linear(text_dim, embed_dim)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text_dim))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - _PRIOR) / _PRIOR)))
        self.box = nn.Conv2d(embed_dim, 4, 1)
        self.centerness = nn.Conv2d(embed_dim, 1, 1)
        self.level_scales = nn.Parameter(torch.ones(num_levels))  # of the boxes
        for layer in (self.box, self.centerness):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, maps: Sequence[Tensor], tokens: Tensor, text: TextFeatures) -> DensePredictions:
        """`maps` L x (B, C, h, w) and `tokens` (B, T, text channels), whose padding `text` knows."""
        # in float16 the smallest divisor would be 0, and a token of zeros NaN
        tokens = F.normalize(as_float32_at_least(tokens), dim=-1).to(tokens.dtype)
        keys = self.text_projection(tokens / 2) / self.log_scale.exp()  # (B, T, C)
        biases = tokens @ self.text_bias + self.bias  # (B, T)
        return DensePredictions(
            token_logits=[self._logits(m, keys, biases, text.padding_mask) for m in maps],
            box_deltas=[_rows(self.box(m) * scale) for m, scale in zip(maps, self.level_scales)],
            centerness=[_rows(self.centerness(m))[..., 0] for m in maps],
            sizes=tuple((m.shape[-2], m.shape[-1]) for m in maps),
        )

    def _logits(self, x: Tensor, keys: Tensor, biases: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, h * w, T) of a map (B, C, h, w)."""
        logits = _rows(x) @ keys.mT + biases[:, None]
        return logits.clamp(-_LARGEST, _LARGEST).masked_fill(padding_mask[:, None], -math.inf)


def _rows(x: Tensor) -> Tensor:
    """(B, K, h, w) -> (B, h * w, K)."""
    return x.flatten(2).transpose(1, 2)
