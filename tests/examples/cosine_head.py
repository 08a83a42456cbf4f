"""A class head of one's own: the cosine between a query and a text token, times a learned temperature."""

import math

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.modeling.transformer_decoder.heads import CLASS_HEADS
from grounding_dino.structures import TextFeatures

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineContrast(nn.Module):
    """Logits of queries against text tokens: cosine times temperature plus bias."""

    def __init__(self, temperature: float = 10.0) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.bias = nn.Parameter(torch.full((1,), -math.log(99.0)))  # 1 % at the start

    def forward(self, queries: Tensor, text: TextFeatures) -> Tensor:
        """`queries` (B, Q, C) -> (B, Q, T) in float32, -inf at padded tokens."""
        tokens = F.normalize(text.embeddings.float(), dim=-1)  # (B, T, C)
        logits = F.normalize(queries.float(), dim=-1) @ tokens.mT * self.log_temperature.exp() + self.bias
        return logits.masked_fill(text.padding_mask[:, None], -math.inf)


CLASS_HEADS["CosineContrast"] = lambda cfg: CosineContrast()
