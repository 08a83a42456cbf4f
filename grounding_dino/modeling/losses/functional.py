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
