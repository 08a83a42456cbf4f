"""Losses as pure functions of tensors."""

from __future__ import annotations

from grounding_dino.layers.box_ops import as_float32_at_least

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of independent yes/no decisions, element by element (Lin et al., ICCV 2017, equation 5).

    Args:
        logits: any shape and float dtype; computed in float32 or better. Where `valid` is False they may be -inf.
        targets: bool, like `logits`.
        valid: bool, broadcastable to `logits`; False gives zero loss and zero gradient.
        alpha: weight of the positives, the negatives having 1 - alpha.
        gamma: exponent that plays down what is already decided well.
    """
    logits = as_float32_at_least(logits)
    wrong = torch.where(targets, -logits, logits)  # logit of the wrong answer
    if valid is not None:
        wrong = wrong.masked_fill(~valid, -1e4)  # certainly right: loss and gradient are exactly 0
    weight = torch.where(targets, alpha, 1 - alpha)
    return weight * wrong.sigmoid().pow(gamma) * F.softplus(wrong)


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps at points between their cells, bilinear, 0 outside.

    Args:
        maps: (N, C, H, W), of any dtype; read in float32 or better.
        points: (N, P, 2) x, y as a share of width and height; cell (0, 0) is centred at (0.5 / W, 0.5 / H).

    Returns:
        (N, C, P).
    """
    maps, points = as_float32_at_least(maps), as_float32_at_least(points)
    grid = (2 * points - 1)[:, :, None]  # (N, P, 1, 2)
    return F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", align_corners=False)[..., 0]


def sample_masks(masks: Tensor, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """Values in [0, 1] of bool masks (N, H, W) at points (M, P, 2), or (1, P, 2) for all: (M, P).

    `rows` (M,) says which mask each of M is, so that a mask asked for repeatedly is not copied; None: each once.

    As :func:`point_sample`, but each point's four cells are looked up: a dense picture's masks in floating point would
    take gigabytes, and their conversion most of the time of a loss.
    """
    height, width = masks.shape[-2:]
    x, y = as_float32_at_least(points).unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    left, top = x.floor(), y.floor()
    share_x, share_y = x - left, y - top  # of the right and lower neighbours
    rows = torch.arange(len(masks), device=masks.device) if rows is None else rows
    total = share_x.new_zeros(len(rows), points.shape[1])
    cells = masks.flatten(1)
    for column, weight_x in ((left, 1 - share_x), (left + 1, share_x)):
        for row, weight_y in ((top, 1 - share_y), (top + 1, share_y)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            total += cells[rows[:, None], index] * (weight_x * weight_y * inside)
    return total


@torch.no_grad()
def uncertain_points(logits: Tensor, num_points: int, oversample_ratio: float, importance_ratio: float) -> Tensor:
    """Points (N, P, 2) at which masks of `logits` (N, h, w) are compared: mostly where these are undecided.

    Of `oversample_ratio` x P random places the `importance_ratio` x P with logits nearest to 0 are taken; the rest is
    random (Kirillov et al., "PointRend", section 3.1).
    """
    candidates = torch.rand(len(logits), int(num_points * oversample_ratio), 2, device=logits.device)
    doubt = -point_sample(logits[:, None], candidates)[:, 0].abs()  # (N, candidates)
    num_uncertain = int(importance_ratio * num_points)
    chosen = doubt.topk(num_uncertain, dim=1).indices[..., None].expand(-1, -1, 2)
    rest = torch.rand(len(logits), num_points - num_uncertain, 2, device=logits.device)
    return torch.cat((candidates.gather(1, chosen), rest), dim=1)


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """1 - the overlap of two masks relative to their sizes, smoothed by 1: (..., P), (..., P) in [0, 1] -> (...).

    Milletari et al., "V-Net", 2016.
    """
    overlap = 2 * (probabilities * targets).sum(-1)
    return 1 - (overlap + 1) / (probabilities.sum(-1) + targets.sum(-1) + 1)
