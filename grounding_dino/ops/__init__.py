"""Native operators with a plain-PyTorch twin."""

from __future__ import annotations

from grounding_dino.ops.registration import ms_deform_attn
from grounding_dino.ops.status import kernel_status
from grounding_dino.ops.twin import ms_deform_attn_torch

__all__ = ["kernel_status", "ms_deform_attn", "ms_deform_attn_torch"]
