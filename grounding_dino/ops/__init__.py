"""Native operators with a plain-PyTorch twin."""

from __future__ import annotations

from grounding_dino.ops.registration import ms_deform_attn
from grounding_dino.ops.twin import ms_deform_attn_torch

__all__ = ["ms_deform_attn", "ms_deform_attn_torch"]
