"""Layers and small tensor functions the models are built of."""

from .batch_norm import FrozenBatchNorm2d, get_norm
from .blocks import CNNBlockBase
from .mask_ops import paste_masks_in_image
from .nms import batched_nms
from .shape_spec import ShapeSpec
from .wrappers import Conv2d, cat, nonzero_tuple

__all__ = [
    "CNNBlockBase",
    "Conv2d",
    "FrozenBatchNorm2d",
    "ShapeSpec",
    "batched_nms",
    "cat",
    "get_norm",
    "nonzero_tuple",
    "paste_masks_in_image",
]
