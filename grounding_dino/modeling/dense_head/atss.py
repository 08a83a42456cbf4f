"""Which places learn which object (Zhang et al., "Bridging the gap between anchor-based and anchor-free detection via
adaptive training sample selection", CVPR 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy, box_iou

import torch
from torch import Tensor

BACKGROUND = -1
_INSIDE = 0.01  # pixels that a place must keep from an object's border


@torch.no_grad()
def assign_places(anchors: Sequence[Tensor], boxes: Tensor, num_candidates: int = 9) -> Tensor:
    """(A,) int64: the object that each place learns, or `BACKGROUND`.

    Candidates of an object are the `num_candidates` places of every level nearest to its centre. Those learn it whose
    anchor overlaps it by at least the mean plus the standard deviation of the candidates' overlaps, if they lie inside.
    A place wanted by several objects learns the one that it overlaps most.

    No place learns an object that holds no centre, nor one that more than half of its candidates overlap equally and
    most, since none reaches the bound then: small objects in pictures of few cells.

    Args:
        anchors: of each level (A_l, 4) cxcywh in pixels; A is their sum.
        boxes: (N, 4) XYXY objects.
    """
    places = torch.cat(list(anchors))
    if not len(boxes):
        return torch.full((len(places),), BACKGROUND, device=places.device)
    candidates = _nearest(anchors, boxes, num_candidates)  # (M, N)
    overlaps = _overlaps(places[candidates], boxes)  # (M, N)
    spread = overlaps.std(0) if len(overlaps) > 1 else 0.0  # a single number has no deviation, but NaN
    chosen = (overlaps >= overlaps.mean(0) + spread) & _inside(places[candidates, :2], boxes)
    wanted = overlaps.new_full((len(places), len(boxes)), -1.0)
    wanted.scatter_(0, candidates, torch.where(chosen, overlaps, -1.0))
    best, objects = wanted.max(1)
    return torch.where(best >= 0, objects, BACKGROUND)


def _nearest(anchors: Sequence[Tensor], boxes: Tensor, count: int) -> Tensor:
    """(M, N): of every level the `count` places (or all) nearest to each object's centre, counted through levels."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    found, first = [], 0
    for level in anchors:
        distances = torch.cdist(level[:, :2], centres, compute_mode="donot_use_mm_for_euclid_dist")  # (A_l, N)
        found.append(first + distances.topk(min(count, len(level)), dim=0, largest=False).indices)
        first += len(level)
    return torch.cat(found)


def _overlaps(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of anchors (M, N, 4) cxcywh with the objects (N, 4) they are near to: (M, N)."""
    return box_iou(box_cxcywh_to_xyxy(anchors).transpose(0, 1), boxes[:, None])[..., 0].T


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (M, N, 2) lie in boxes (N, 4): (M, N)."""
    margins = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=-1)
    return margins.amin(-1) > _INSIDE


def centerness_of(points: Tensor, boxes: Tensor) -> Tensor:
    """How central points (P, 2) lie in boxes (P, 4): (P,), 1 in the middle, 0 on the border (FCOS, equation 3)."""
    before, after = points - boxes[:, :2], boxes[:, 2:] - points
    shares = torch.minimum(before, after) / torch.maximum(before, after)
    return shares.clamp(min=0).prod(-1).sqrt()
