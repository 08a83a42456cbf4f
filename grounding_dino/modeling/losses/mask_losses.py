"""Costs and losses of masks, compared at sampled points (Cheng et al., "Mask2Former", section 3.3; Mask DINO)."""

from __future__ import annotations

from collections.abc import Sequence

from grounding_dino.modeling.losses.functional import dice_loss, point_sample, sample_masks, uncertain_points
from grounding_dino.structures import Targets

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskCosts:
    """Matching costs between predicted masks and targets': binary cross-entropy and dice at points shared by all."""

    def __init__(self, mask_weight: float, dice_weight: float, num_points: int) -> None:
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points

    def draw_points(self, device: torch.device) -> Tensor:
        """(1, P, 2) random points of one picture; replace this method to inject known ones."""
        return torch.rand(1, self.num_points, 2, device=device)

    def __call__(self, pred_masks: Sequence[Tensor], masks: Tensor) -> Tensor:
        """(S, Q, N) weighted costs in one picture of S stages' masks (Q, h, w) and N target masks (N, H, W)."""
        points = self.draw_points(masks.device)
        truth = sample_masks(masks, points)  # (N, P)
        return torch.stack([self.of_stage(point_sample(stage[None], points)[0], truth) for stage in pred_masks])

    def of_stage(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(Q, N) from logits (Q, P) and truth (N, P) in [0, 1] at the same points."""
        # the cross-entropy is softplus(-x) where the truth is 1 and softplus(x) where it is 0; they differ by x
        entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth.mT) / logits.shape[-1]
        probability = logits.sigmoid()
        overlap = 2 * probability @ truth.mT
        dice = 1 - (overlap + 1) / (probability.sum(-1, keepdim=True) + truth.sum(-1) + 1)
        return self.mask_weight * entropy + self.dice_weight * dice


class MaskLosses:
    """Losses of matched masks: binary cross-entropy and dice at points of their own, most of them undecided ones."""

    def __init__(
        self, mask_weight: float, dice_weight: float, num_points: int, oversample_ratio: float, importance_ratio: float
    ) -> None:
        """Options as in :func:`uncertain_points`.

        Raises:
            ValueError: there are no points, or fewer candidates than points to take of them.
        """
        if num_points < 1 or not 0 <= importance_ratio <= min(1.0, oversample_ratio):
            raise ValueError(
                f"MODEL.LOSS has NUM_POINTS {num_points}, OVERSAMPLE_RATIO {oversample_ratio} and "
                f"IMPORTANCE_SAMPLE_RATIO {importance_ratio}; give at least one point, and a share from 0 to 1 that is "
                "not above OVERSAMPLE_RATIO"
            )
        self.weights = {"mask": mask_weight, "dice": dice_weight}
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio

    def draw_points(self, logits: Tensor) -> Tensor:
        """(M, P, 2) points for masks (M, h, w); replace this method to inject known ones."""
        return uncertain_points(logits, self.num_points, self.oversample_ratio, self.importance_ratio)

    def __call__(self, logits: Tensor, masks: Tensor, target: Tensor, normaliser: Tensor) -> dict[str, Tensor]:
        """Weighted losses of M masks (M, h, w), over `normaliser`; mask m learns `masks[target[m]]` (N, H, W)."""
        points = self.draw_points(logits)
        with torch.no_grad():
            truth = sample_masks(masks, points, target)  # (M, P)
        sampled = point_sample(logits[:, None], points)[:, 0]  # (M, P)
        entropy = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(-1)
        losses = {"mask": entropy, "dice": dice_loss(sampled.sigmoid(), truth)}
        return {name: value.sum() * (self.weights[name] / normaliser) for name, value in losses.items()}


def masks_of(target: Targets, like: Tensor) -> Tensor:
    """The masks (N, H, W) of a target.

    Raises:
        ValueError: there are none.
    """
    if target.masks is None:
        raise ValueError("the model predicts masks, but the targets have none (gt_masks); set MODEL.MASK_ON False")
    return target.masks.to(like.device)
