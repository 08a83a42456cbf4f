"""Segmentations of objects as annotation files write them (polygons, RLE, bit masks), and the masks that they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask
from numpy.typing import NDArray

Size = tuple[int, int]  # height, width

_MOST_BITS = 60  # of a run length in a compressed RLE


def transformed_mask(segmentation: Any, transforms: T.TransformList, size: Size, new_size: Size) -> NDArray[np.bool_]:
    """The mask of an object in the transformed picture.

    Polygons are moved and drawn at the new size; RLE (compressed, or with a list of counts) and bit masks are resized
    with nearest neighbours. Polygons with fewer than three corners are left out, so that the mask may be empty.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], an RLE dict with `size` and `counts`, or an (H, W) array
            that is not 0 inside.
        transforms: what was applied to the picture.
        size: of the picture before.
        new_size: and after them.

    Returns:
        (height, width) of `new_size`.

    Raises:
        ValueError: it is none of these, is of another size than the picture, or the runs of an RLE do not fill it.
    """
    if isinstance(segmentation, (list, tuple)):
        corners = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        if any(points.ndim != 1 or points.size % 2 for points in corners):
            raise ValueError("a polygon is not a list of x0, y0, x1, y1 and so on; correct the annotation")
        polygons = [points.reshape(-1, 2).copy() for points in corners if points.size >= 6]
        moved = [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
        return polygons_to_bitmask([polygon for polygon in moved if polygon.size >= 6], *new_size)
    mask = transforms.apply_segmentation(_bit_mask(segmentation, size))
    if mask.shape != new_size:
        raise ValueError(f"a mask becomes {mask.shape} where its picture becomes {new_size} (height, width)")
    return mask.astype(bool)


def _bit_mask(segmentation: Any, size: Size) -> NDArray[np.uint8]:
    """(H, W), 0 outside and 1 inside."""
    if isinstance(segmentation, dict):
        fault = rle_fault(segmentation, *size)
        if fault:
            raise ValueError(f"{fault}; correct the annotation or leave it out")
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *size)
        return np.asarray(coco_mask.decode(segmentation))
    mask = np.asarray(segmentation)
    if mask.ndim != 2 or mask.dtype.kind not in "biu":
        kind = type(segmentation).__name__
        raise ValueError(f"a segmentation is a list of polygons, an RLE dict or an (H, W) bit mask, not a {kind}")
    if mask.shape != size:
        raise ValueError(f"a bit mask is {mask.shape}, but its picture {size} (height, width)")
    return (mask != 0).astype(np.uint8)


def rle_fault(rle: Any, height: int, width: int) -> str | None:
    """What is wrong with an RLE of a picture of that size, in words; None where nothing is.

    pycocotools leaves the pixels after the last run undefined where the runs are too short.
    """
    if list(rle.get("size") or ()) != [height, width]:
        return f"an RLE has the size {rle.get('size')}, but its picture is {[height, width]} (height, width)"
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = counts.encode()
    try:
        runs = _compressed_runs(counts) if isinstance(counts, bytes) else _listed_runs(counts)
    except ValueError as error:
        return str(error)
    if runs and min(runs) < 0:
        return "an RLE has a run of negative length"
    if sum(runs) != height * width:
        return f"the runs of an RLE fill {sum(runs)} pixels of {height * width} ({height} x {width})"
    return None


def _listed_runs(counts: Any) -> list[int]:
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ValueError("the 'counts' of an RLE are neither text nor a list of whole numbers")
    return counts


def _compressed_runs(counts: bytes) -> list[int]:
    """Run lengths of a COCO-compressed RLE.

    Each is in groups of five bits, the lowest first; from the fourth on it is the difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        code = byte - 48
        if not 0 <= code < 64 or shift >= _MOST_BITS:
            raise ValueError("the 'counts' of an RLE are not in COCO's compressed form")
        value |= (code & 31) << shift
        shift += 5
        if code < 32:  # no group follows
            if code & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the 'counts' of an RLE break off within a run")
    return runs
