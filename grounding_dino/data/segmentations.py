"""Segmentations of objects as annotation files write them (polygons, RLE, bit masks), and the masks that they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask
from numpy.typing import NDArray

Size = tuple[int, int]  # height, width

_MOST_GROUPS = 6  # of five bits, in a run length of a compressed RLE; more exceed any picture


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
        counts = counts.encode("ascii", errors="replace")
    try:
        runs = _compressed_runs(counts) if isinstance(counts, bytes) else _listed_runs(counts)
    except ValueError as error:
        return str(error)
    if runs.size and runs.min() < 0:
        return "an RLE has a run of negative length"
    if runs.sum() != height * width:
        return f"the runs of an RLE fill {runs.sum()} pixels of {height * width} ({height} x {width})"
    return None


def _listed_runs(counts: Any) -> NDArray[np.int64]:
    if not isinstance(counts, list) or not all(type(count) is int and abs(count) < 2**31 for count in counts):
        raise ValueError("the 'counts' of an RLE are neither text nor a list of whole numbers")
    return np.array(counts, dtype=np.int64)


def _compressed_runs(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of a COCO-compressed RLE: groups of five bits from the lowest, from the fourth run on as differences
    from the run two before."""
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(ends) or ends[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        raise ValueError("the 'counts' of an RLE are not in COCO's compressed form")
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MOST_GROUPS:
        raise ValueError("an RLE has a run longer than any picture")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values
