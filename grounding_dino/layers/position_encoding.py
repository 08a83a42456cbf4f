"""Sine position encodings of pixels, boxes and token positions (Attention Is All You Need, section 3.5; DETR)."""

from __future__ import annotations

import math

from grounding_dino.layers.constants import kept_for_sizes

import torch
from torch import Tensor


def sine_embedding(positions: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Embed each coordinate of `positions` (..., n) in `dim` channels: (..., n * dim).

    Channel 2i is sin(2 pi x / temperature^(2i/dim)), channel 2i + 1 the cosine at the same frequency. Coordinates
    keep their order. Computed in float32 at least: half precision cannot hold the phases.
    """
    dtype = torch.promote_types(positions.dtype, torch.float32)
    phase = positions.to(dtype)[..., None] * _frequencies(
        dim, temperature, dtype, positions.device
    )  # (..., n, dim / 2)
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-3)


@kept_for_sizes(16)
def _frequencies(dim: int, temperature: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(dim / 2,)"""
    exponent = torch.arange(0, dim, 2, dtype=dtype, device=device) / dim
    return 2 * math.pi / temperature**exponent


def image_position_embedding(padding_mask: Tensor, dim: int, temperature: float, eps: float = 1e-6) -> Tensor:
    """Position embedding (B, H, W, dim) of a map from its `padding_mask` (B, H, W): first half y, second half x.

    Positions count the valid cells from 1 and are normalised by their number, so the embedding of a picture does
    not depend on how much padding it has.
    """
    valid = (~padding_mask).to(torch.float32)
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = y / (y[:, -1:, :] + eps)
    x = x / (x[:, :, -1:] + eps)
    return sine_embedding(torch.stack((y, x), dim=-1), dim // 2, temperature)


def box_position_embedding(boxes: Tensor, dim: int) -> Tensor:
    """Embed boxes (..., 4) cxcywh in 4 * dim channels, in the order y, x, w, h of DAB-DETR."""
    x, y, w, h = boxes.unbind(-1)
    return sine_embedding(torch.stack((y, x, w, h), dim=-1), dim)
