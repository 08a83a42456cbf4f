"""Query selection: the best image tokens become the decoder's first boxes (DINO, 3.4; Grounding DINO, 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from grounding_dino.layers.blocks import MLP
from grounding_dino.layers.box_ops import boxes_of_masks, inverse_sigmoid
from grounding_dino.layers.constants import kept_for_sizes
from grounding_dino.modeling.pixel_decoder.deformable_encoder import cell_centres
from grounding_dino.modeling.transformer_decoder.decoder import DINODecoder
from grounding_dino.modeling.transformer_decoder.heads import build_box_head, build_class_head
from grounding_dino.ops.linear import linear
from grounding_dino.structures import Memory, Predictions, Queries, TextFeatures

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

CONTENTS = ("learned", "selected")
SMALLEST_PROPOSALS = ("finest", "coarsest")
# The box around the pixels of a mask, in their number from the first to the last: Mask DINO's published models know
# two, one of which leaves out the last pixel's own extent.
BOX_INITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "no": None,
    "mask2box": lambda masks: boxes_of_masks(masks, last_pixel=0, empty=(1.0, 1.0, 0.0, 0.0)),
    "bitmask": lambda masks: boxes_of_masks(masks, last_pixel=1, empty=(0.0, 0.0, 0.0, 0.0)),
}


class QuerySelection(nn.Module):
    """Rank image tokens by their best class or text score; the top ones give the decoder's first boxes.

    The queries' content is learned, or the selected token itself. Tokens are ranked with heads of their own, or with
    the decoder's.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        num_queries: int,
        class_head: nn.Module | None,
        box_head: MLP | None,
        content: str = "learned",
        smallest_proposals: str = "finest",
        box_init: str = "no",
        padding_selectable: bool = False,
    ) -> None:
        """
        Args:
            class_head: None, together with `box_head`, takes the decoder's.
            content: of a query, "learned" or "selected".
            smallest_proposals: the level, "finest" or "coarsest", whose proposals have the side 0.05.
            box_init: what the decoder's first boxes are, a name of BOX_INITS.
            padding_selectable: rank padded tokens too, as the published code does also at inference.

        Raises:
            ValueError: an unknown name.
        """
        super().__init__()
        for key, value, known in (
            ("CONTENT", content, CONTENTS),
            ("SMALLEST_PROPOSALS", smallest_proposals, SMALLEST_PROPOSALS),
            ("BOX_INIT", box_init, tuple(BOX_INITS)),
        ):
            if value not in known:
                raise ValueError(f"unknown MODEL.QUERY_SELECTION.{key} {value!r}; choose from {known}")
        self.num_queries = num_queries
        self.smallest_proposals = smallest_proposals
        self.box_of_mask = BOX_INITS[box_init]
        self.padding_selectable = padding_selectable
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.class_head = class_head
        self.box_head = box_head
        self.content = nn.Embedding(num_queries, embed_dim) if content == "learned" else None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.QUERY_SELECTION, and the heads' configuration.

        Raises:
            ValueError: boxes of masks are asked for without a mask head.
        """
        selection = cfg.MODEL.QUERY_SELECTION
        if selection.BOX_INIT != "no" and not (cfg.MODEL.MASK_ON and selection.SHARED_HEADS_ON):
            raise ValueError(
                f"MODEL.QUERY_SELECTION.BOX_INIT {selection.BOX_INIT!r} needs masks of the selected tokens: set "
                "MODEL.MASK_ON and MODEL.QUERY_SELECTION.SHARED_HEADS_ON True, or BOX_INIT 'no'"
            )
        own_heads = not selection.SHARED_HEADS_ON
        return {
            "embed_dim": cfg.MODEL.EMBED_DIM,
            "num_queries": selection.NUM_QUERIES,
            "class_head": build_class_head(cfg) if own_heads else None,
            "box_head": build_box_head(cfg.MODEL.EMBED_DIM) if own_heads else None,
            "content": selection.CONTENT,
            "smallest_proposals": selection.SMALLEST_PROPOSALS,
            "box_init": selection.BOX_INIT,
            "padding_selectable": cfg.MODEL.PAD_BEFORE_BACKBONE_ON,
        }

    def forward(
        self, memory: Memory, text: TextFeatures | None, decoder: DINODecoder
    ) -> tuple[Queries, Predictions | None]:
        """Return the decoder's queries, and the encoder's own predictions at the selected tokens."""
        proposals, invalid = token_proposals(memory, self.smallest_proposals)
        tokens = self.norm(linear(self.projection, memory.features.masked_fill(invalid[..., None], 0.0)))
        logits = (self.class_head or decoder.class_head(0))(tokens, text)  # (B, S, K)
        indices, padding_mask = self.select(logits.amax(-1), memory)
        selected = _gather(tokens, indices)
        deltas = (self.box_head or decoder.box_head(0))(selected).to(proposals.dtype)
        boxes = (deltas + _gather(proposals, indices)).sigmoid()
        if self.class_head is None:
            of_selected, masks = decoder.class_and_mask(0, selected, memory, text)
            predictions = Predictions(of_selected, boxes, masks)
        else:
            predictions = Predictions(_gather(logits, indices), boxes)
        if self.content is None:
            content = selected.detach()
        else:
            content = self.content.weight[: indices.shape[1]].expand(indices.shape[0], -1, -1)
        references = self.first_boxes(predictions, memory, decoder)
        return Queries(content=content, reference_points=references, padding_mask=padding_mask), predictions

    def first_boxes(self, predictions: Predictions, memory: Memory, decoder: DINODecoder) -> Tensor:
        """(B, Q, 4): the decoder's first boxes, which no gradient passes."""
        if self.box_of_mask is None or predictions.pred_masks is None or memory.mask_ratios is None:
            return predictions.pred_boxes.detach()
        boxes = self.box_of_mask(predictions.pred_masks.detach() > 0).to(predictions.pred_boxes.dtype)
        boxes = boxes / memory.mask_ratios.repeat(1, 2)[:, None]  # from shares of the batch's map to the picture's own
        return inverse_sigmoid(boxes, decoder.reference_eps).sigmoid()

    def select(self, scores: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Indices (B, Q) of the best tokens, and which of them are padding (None if none can be).

        A picture with fewer tokens than queries gets fewer queries; in a batch its surplus is marked as padding. The
        host does not wait to see whether there is any.
        """
        num_queries = min(self.num_queries, scores.shape[1])
        if self.training or self.padding_selectable or not memory.has_padding:
            return scores.topk(num_queries, dim=1).indices, None
        indices = scores.masked_fill(memory.padding_mask, -math.inf).topk(num_queries, dim=1).indices
        return indices, None if memory.fewest_tokens >= num_queries else memory.padding_mask.gather(1, indices)


class LearnedQueries(nn.Module):
    """Queries whose content and first boxes are learned, whatever the picture (DAB-DETR; Mask DINO, semantic)."""

    @configurable
    def __init__(self, *, embed_dim: int, num_queries: int) -> None:
        super().__init__()
        self.content = nn.Embedding(num_queries, embed_dim)
        self.reference_logits = nn.Embedding(num_queries, 4)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.QUERY_SELECTION.NUM_QUERIES.

        Raises:
            ValueError: boxes of masks are asked for, which come from selected tokens.
        """
        if cfg.MODEL.QUERY_SELECTION.BOX_INIT != "no":
            raise ValueError(
                f"MODEL.QUERY_SELECTION.BOX_INIT is {cfg.MODEL.QUERY_SELECTION.BOX_INIT!r}, but LearnedQueries learn "
                "their first boxes; set it to 'no', or NAME 'TopTokens'"
            )
        return {"embed_dim": cfg.MODEL.EMBED_DIM, "num_queries": cfg.MODEL.QUERY_SELECTION.NUM_QUERIES}

    def forward(
        self, memory: Memory, text: TextFeatures | None, decoder: DINODecoder
    ) -> tuple[Queries, Predictions | None]:
        """The same queries for every picture; the encoder predicts nothing."""
        batch = memory.features.shape[0]
        content = self.content.weight.expand(batch, -1, -1)
        return Queries(content, self.reference_logits.weight.sigmoid().expand(batch, -1, -1)), None


QUERY_SELECTIONS: dict[str, Callable[[CfgNode], nn.Module]] = {
    "TopTokens": QuerySelection,
    "LearnedQueries": LearnedQueries,
}


def build_query_selection(cfg: CfgNode) -> nn.Module:
    """`(memory, text, decoder) -> (queries, encoder predictions)`, as MODEL.QUERY_SELECTION.NAME says."""
    name = cfg.MODEL.QUERY_SELECTION.NAME
    if name not in QUERY_SELECTIONS:
        raise ValueError(f"unknown MODEL.QUERY_SELECTION.NAME {name!r}; choose from {sorted(QUERY_SELECTIONS)}")
    return QUERY_SELECTIONS[name](cfg)


def token_proposals(memory: Memory, smallest: str = "finest") -> tuple[Tensor, Tensor]:
    """A box for every token, as logits (B, S, 4), and which tokens have none (B, S).

    Centred on the token; side 0.05 on the `smallest` level, the "finest" or the "coarsest", doubling from level to
    level. Tokens that are padding or whose box leaves (0.01, 0.99) are invalid and have infinite logits.
    """
    if not memory.has_padding:  # all pictures have the same
        batch = memory.features.shape[0]
        logits, invalid = _unpadded_proposals(memory.sizes, smallest, memory.features.device)
        return logits.expand(batch, -1, -1), invalid.expand(batch, -1)
    return _proposals(memory.sizes, memory.valid_ratios, memory.padding_mask, smallest)


@kept_for_sizes(4)
def _unpadded_proposals(
    sizes: tuple[tuple[int, int], ...], smallest: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    no_padding = torch.zeros(1, sum(h * w for h, w in sizes), dtype=torch.bool, device=device)
    return _proposals(sizes, torch.ones(1, len(sizes), 2, device=device), no_padding, smallest)


def _proposals(
    sizes: tuple[tuple[int, int], ...], valid_ratios: Tensor, padding_mask: Tensor, smallest: str
) -> tuple[Tensor, Tensor]:
    boxes = []
    for level, (h, w) in enumerate(sizes):
        centres = cell_centres(h, w, valid_ratios[:, level])
        doublings = level if smallest == "finest" else len(sizes) - 1 - level
        boxes.append(torch.cat((centres, torch.full_like(centres, 0.05 * 2.0**doublings)), dim=-1))
    proposals = torch.cat(boxes, dim=1)
    inside = ((proposals > 0.01) & (proposals < 0.99)).all(-1)
    invalid = padding_mask | ~inside
    return proposals.logit().masked_fill(invalid[..., None], math.inf), invalid


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of `x` (B, S, C) at `indices` (B, Q): (B, Q, C)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))
