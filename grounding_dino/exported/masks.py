"""Mask logits in pictures' pixels, in numpy: what `modeling/mask_results.py` does with instances in torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from grounding_dino.exported.detections import Array, Detections, Size
from grounding_dino.text.phrases import sigmoid

import numpy as np

STRIDE = 4  # pixels that the model saw to one of a mask
_MAX_CHUNK = 2**24  # pixels of masks in floating point at once: 64 MB


@dataclass(frozen=True)
class MaskFrame:
    """How masks lie on a picture.

    Attributes:
        frame: (h, w) pixels that masks cover: the picture, and padding that counts.
        image_size: (h, w) of the picture as the model saw it, in the upper left of the frame.
        size: (h, w) of the result.
    """

    frame: Size
    image_size: Size
    size: Size

    def on_picture(self, logits: Array) -> Array:
        """(n, h, w) -> (n, H, W) in the size of the result."""
        rows, columns = self.frame
        pixels = (logits.shape[1] * STRIDE, logits.shape[2] * STRIDE)  # rounded up to whole cells
        seen = resized(logits, pixels)[:, :rows, :columns]
        return resized(seen[:, : self.image_size[0], : self.image_size[1]], self.size)


def with_masks(found: Detections, place: MaskFrame, mask_scores: bool) -> Detections:
    """Detections with `pred_masks` of their `mask_logits`, and with `mask_scores` scored by them too; best first."""
    assert found.mask_logits is not None and found.query_indices is not None
    _, first, row_of = np.unique(found.query_indices, return_index=True, return_inverse=True)
    masks = np.zeros((len(found), *place.size), dtype=np.bool_)
    certainty = np.zeros(len(found), dtype=np.float32)
    chunk = max(1, _MAX_CHUNK // max(rows * columns for rows, columns in (place.size, place.frame)))
    for start in range(0, len(first), chunk):
        logits = place.on_picture(found.mask_logits[first[start : start + chunk]].astype(np.float32))
        for offset, of_query in enumerate(logits):
            rows = row_of == start + offset
            inside = of_query > 0
            masks[rows] = inside
            certainty[rows] = sigmoid(of_query[inside]).sum() / (inside.sum() + 1e-6)
    scores = found.scores * certainty if mask_scores else found.scores
    result = dataclasses.replace(found, scores=scores, pred_masks=masks, mask_logits=None)
    return result[np.argsort(-scores, kind="stable")]


def resized(maps: Array, size: Size) -> Array:
    """Maps (N, h, w) brought to `size`, bilinear between the centres of cells, as torch's `interpolate` does it."""
    for axis, length in ((1, size[0]), (2, size[1])):
        if maps.shape[axis] != length:
            maps = _resized_axis(maps, axis, length)
    return maps


def _resized_axis(maps: Array, axis: int, length: int) -> Array:
    old = maps.shape[axis]
    places = np.maximum((np.arange(length, dtype=np.float32) + 0.5) * np.float32(old / length) - 0.5, 0)
    low = np.minimum(places.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    shape = (1, length, 1) if axis == 1 else (1, 1, length)
    share = (places - low).reshape(shape)
    return maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
