"""Heads on queries: similarity to text tokens or classes, boxes, and masks."""

from __future__ import annotations

import math
from collections.abc import Callable

from grounding_dino.layers.blocks import MLP
from grounding_dino.layers.box_ops import as_float32_at_least
from grounding_dino.structures import TextFeatures

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

SCALES: dict[str, Callable[[int], float]] = {
    "none": lambda dim: 1.0,  # Grounding DINO
    "sqrt_dim": lambda dim: dim**-0.5,  # MM-Grounding-DINO
    "learned": lambda dim: 1.0,  # times exp(log_scale), which starts at 1: mmdet's fine-tuning of Grounding DINO
}


class TokenContrast(nn.Module):
    """Logits of queries against text tokens: scaled dot product plus an optional bias."""

    def __init__(self, embed_dim: int, scale: str = "none", bias: bool = False) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"unknown MODEL.CLASS_HEAD.SCALE {scale!r}; choose from {sorted(SCALES)}")
        self.scale = SCALES[scale](embed_dim)
        self.log_scale = nn.Parameter(torch.zeros(())) if scale == "learned" else None
        # a probability of 1 % at the start keeps the first focal loss small (RetinaNet, section 4.1)
        self.bias = nn.Parameter(torch.full((1,), -math.log(99.0))) if bias else None

    def forward(self, queries: Tensor, text: TextFeatures) -> Tensor:
        """`queries` (B, Q, C) -> (B, Q, T) in float32 at least, -inf at padded tokens."""
        with torch.autocast(queries.device.type, enabled=False):  # half precision would tie what is ranked by logits
            logits = as_float32_at_least(queries) @ as_float32_at_least(text.embeddings).mT * self.scale  # (B, Q, T)
        if self.log_scale is not None:
            logits = logits * self.log_scale.exp()
        if self.bias is not None:
            logits = logits + self.bias
        return logits.masked_fill(text.padding_mask[:, None], -math.inf) if text.has_padding else logits


class LinearClassifier(nn.Linear):
    """Logits of queries for a fixed list of classes."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(embed_dim, num_classes)
        nn.init.constant_(self.bias, -math.log(99.0))  # as in TokenContrast

    def forward(self, queries: Tensor, text: TextFeatures | None = None) -> Tensor:
        """`queries` (B, Q, C) -> (B, Q, K) in float32 at least; there is no text."""
        with torch.autocast(queries.device.type, enabled=False):  # as in TokenContrast
            queries = as_float32_at_least(queries)
            return F.linear(queries, self.weight.to(queries.dtype), self.bias.to(queries.dtype))


def num_class_columns(cfg: CfgNode) -> int:
    """Columns of a linear class head: the classes, and with a cross-entropy "no object".

    Raises:
        ValueError: the configuration does not say how many classes there are.
    """
    classes = cfg.MODEL.CLASS_HEAD.NUM_CLASSES
    if classes < 1:
        raise ValueError(
            f"MODEL.CLASS_HEAD.NUM_CLASSES is {classes}; give the number of classes that the model tells apart"
        )
    return classes + (cfg.MODEL.LOSS.CLASS == "cross_entropy")


CLASS_HEADS: dict[str, Callable[[CfgNode], nn.Module]] = {
    "TokenContrast": lambda cfg: TokenContrast(
        cfg.MODEL.EMBED_DIM, cfg.MODEL.CLASS_HEAD.SCALE, cfg.MODEL.CLASS_HEAD.BIAS_ON
    ),
    "Linear": lambda cfg: LinearClassifier(cfg.MODEL.EMBED_DIM, num_class_columns(cfg)),
}


def build_class_head(cfg: CfgNode) -> nn.Module:
    """One class head `(queries, text) -> logits`, as `MODEL.CLASS_HEAD.NAME` says."""
    name = cfg.MODEL.CLASS_HEAD.NAME
    if name not in CLASS_HEADS:
        raise ValueError(f"unknown MODEL.CLASS_HEAD.NAME {name!r}; choose from {sorted(CLASS_HEADS)}")
    return CLASS_HEADS[name](cfg)


def build_box_head(embed_dim: int) -> MLP:
    """An MLP from a query to the change of its box, in logits; zero at the start, so that boxes begin as references."""
    head = MLP(embed_dim, embed_dim, 4, 3)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def build_mask_head(embed_dim: int, mask_dim: int) -> MLP:
    """An MLP from a query to the vector whose products with mask features are its mask's logits."""
    return MLP(embed_dim, embed_dim, mask_dim, 3)
