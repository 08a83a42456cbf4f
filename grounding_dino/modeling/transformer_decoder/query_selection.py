"""Language-guided query selection: the best image tokens become the decoder's first boxes (Grounding DINO, 3.2)."""

from __future__ import annotations

import math
from typing import Any

from grounding_dino.layers.blocks import MLP, any_true
from grounding_dino.modeling.pixel_decoder.deformable_encoder import cell_centres
from grounding_dino.modeling.transformer_decoder.heads import build_box_head, build_class_head
from grounding_dino.structures import Memory, Predictions, Queries, TextFeatures

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn


class QuerySelection(nn.Module):
    """Rank image tokens by their best text score; the top ones give reference boxes to learned content vectors."""

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        num_queries: int,
        class_head: nn.Module,
        box_head: MLP,
        padding_selectable: bool = False,
    ) -> None:
        """`padding_selectable`: rank padded tokens too, as the published code does also at inference."""
        super().__init__()
        self.num_queries = num_queries
        self.padding_selectable = padding_selectable
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.class_head = class_head
        self.box_head = box_head
        self.content = nn.Embedding(num_queries, embed_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.QUERY_SELECTION, and the heads' configuration."""
        return {
            "embed_dim": cfg.MODEL.EMBED_DIM,
            "num_queries": cfg.MODEL.QUERY_SELECTION.NUM_QUERIES,
            "class_head": build_class_head(cfg),
            "box_head": build_box_head(cfg.MODEL.EMBED_DIM),
            "padding_selectable": cfg.MODEL.PAD_BEFORE_BACKBONE_ON,
        }

    def forward(self, memory: Memory, text: TextFeatures | None) -> tuple[Queries, Predictions]:
        """Return the decoder's queries, and the encoder's own predictions at the selected tokens."""
        proposals, invalid = token_proposals(memory)
        tokens = self.norm(self.projection(memory.features.masked_fill(invalid[..., None], 0.0)))
        logits = self.class_head(tokens, text)  # (B, S, K)
        indices, padding_mask = self.select(logits.amax(-1), memory)
        deltas = self.box_head(_gather(tokens, indices)).to(proposals.dtype)
        boxes = (deltas + _gather(proposals, indices)).sigmoid()
        queries = Queries(
            content=self.content.weight[: indices.shape[1]].expand(len(indices), -1, -1),
            reference_points=boxes.detach(),
            padding_mask=padding_mask,
        )
        return queries, Predictions(_gather(logits, indices), boxes)

    def select(self, scores: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Indices (B, Q) of the best tokens, and which of them are padding (None if none can be).

        A picture with fewer tokens than queries gets fewer queries; in a batch its surplus is marked as padding.
        """
        num_queries = min(self.num_queries, scores.shape[1])
        if self.training or self.padding_selectable or not memory.has_padding:
            return scores.topk(num_queries, dim=1).indices, None
        indices = scores.masked_fill(memory.padding_mask, -math.inf).topk(num_queries, dim=1).indices
        padding_mask = memory.padding_mask.gather(1, indices)
        return indices, padding_mask if any_true(padding_mask) else None


def token_proposals(memory: Memory) -> tuple[Tensor, Tensor]:
    """A box for every token, as logits (B, S, 4), and which tokens have none (B, S).

    Centred on the token; side 0.05 on the finest level, doubling with each coarser one. Tokens that are padding or
    whose box leaves (0.01, 0.99) are invalid and have infinite logits.
    """
    boxes = []
    for level, (h, w) in enumerate(memory.spatial_shapes.tolist()):
        centres = cell_centres(int(h), int(w), memory.valid_ratios[:, level])
        boxes.append(torch.cat((centres, torch.full_like(centres, 0.05 * 2.0**level)), dim=-1))
    proposals = torch.cat(boxes, dim=1)
    inside = ((proposals > 0.01) & (proposals < 0.99)).all(-1)
    invalid = memory.padding_mask | ~inside
    return proposals.logit().masked_fill(invalid[..., None], math.inf), invalid


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of `x` (B, S, C) at `indices` (B, Q): (B, Q, C)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))
