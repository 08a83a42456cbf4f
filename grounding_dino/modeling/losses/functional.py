"""Losses as pure functions of tensors."""

from __future__ import annotations

from grounding_dino.layers.box_ops import as_float32_at_least

import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of independent yes/no decisions, element by element (Lin et al., ICCV 2017, equation 5).

    Args:
        logits: any shape and float dtype; computed in float32 or better. Where `valid` is False they may be -inf.
        targets: like `logits`, in [0, 1].
        valid: bool, broadcastable to `logits`; False gives zero loss and zero gradient.
        alpha: weight of the positives, the negatives having 1 - alpha.
        gamma: exponent that plays down what is already decided well.
    """
    logits = as_float32_at_least(logits)
    if valid is not None:
        logits = logits.masked_fill(~valid, 0.0)  # before any arithmetic: inf * 0 would be NaN in the gradient
    targets = targets.to(logits.dtype)
    probability = logits.sigmoid()
    miss = probability + targets - 2 * probability * targets  # 1 - (probability given to the right answer)
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    loss = weight * miss.pow(gamma) * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return loss if valid is None else loss.masked_fill(~valid, 0.0)
