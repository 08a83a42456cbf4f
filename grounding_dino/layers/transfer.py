"""From the host to the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`.

    On the way to a GPU it is pinned first: a copy from memory that the system may move makes the host wait until the
    GPU has done all that it was asked before.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
