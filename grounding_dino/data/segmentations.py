"""Segmentations of objects as annotation files write them (polygons, RLE, bit masks), and the masks that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask
from numpy.typing import NDArray

Size = tuple[int, int]  # height, width

_MOST_BITS = 60  # of a run length in a compressed RLE
_ALPHABET = bytes(range(48, 112))  # of compressed RLE: groups of five bits,
_FIRST_OPEN = 80  # from which on another group of the same value follows
_MOST_GROUPS = 7  # of a value in masks that are read together
_AT_ONCE = 1000  # masks whose runs are read together


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


def rle_fault(rle: Any, height: int, width: int, filled: int | None = None) -> str | None:
    """What is wrong with an RLE of a picture of that size, in words; None where nothing is.

    pycocotools leaves the pixels after the last run undefined where the runs are too short.

    Args:
        filled: what :func:`filled_pixels` says of it; if that is all of the picture, runs are not read again.
    """
    if list(rle.get("size") or ()) != [height, width]:
        return f"an RLE has the size {rle.get('size')}, but its picture is {[height, width]} (height, width)"
    if filled == height * width:
        return None
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


def filled_pixels(segmentations: Sequence[Any]) -> list[int | None]:
    """Of many segmentations, how many pixels the runs of each compressed RLE fill; None of all others.

    None as well where something is unusual, so that one has to ask :func:`rle_fault`. Reading the runs of a thousand
    masks together is several times as fast as one mask after the other.
    """
    filled: list[int | None] = [None] * len(segmentations)
    texts = {
        place: text
        for place, segmentation in enumerate(segmentations)
        if isinstance(segmentation, dict) and (text := _whole_counts(segmentation.get("counts")))
    }
    places = list(texts)
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        for place, pixels in zip(part, _sums_of_runs([texts[place] for place in part])):
            filled[place] = pixels if pixels >= 0 else None
    return filled


def _whole_counts(counts: Any) -> bytes:
    """The `counts` of an RLE if they are in COCO's compressed form and do not break off within a run, else nothing."""
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode()
    if not isinstance(counts, bytes) or not counts or counts.translate(None, _ALPHABET) or counts[-1] >= _FIRST_OPEN:
        return b""
    return counts


def _sums_of_runs(texts: Sequence[bytes]) -> list[int]:
    """The sum of the runs of each of :func:`_whole_counts` (see _compressed_runs); -1 where one is below 0 or huge."""
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8) - 48
    last = np.flatnonzero(codes < 32)  # group of each value
    first = np.concatenate([[0], last[:-1] + 1])
    groups = last - first + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, groups))
    values = np.add.reduceat((codes & 31).astype(np.int64) << shifts, first)
    values -= np.where(codes[last] & 16, np.int64(1) << 5 * groups, 0)

    ends = np.searchsorted(last, np.cumsum([len(text) for text in texts]))  # of the texts among the values
    starts = np.concatenate([[0], ends[:-1]])
    start_of = np.repeat(starts, ends - starts)
    place = np.arange(len(values)) - start_of
    sums = np.zeros(len(values) + 1, dtype=np.int64)  # of every second value up to each; the last stays 0
    sums[:-1:2], sums[1:-1:2] = values[::2].cumsum(), values[1::2].cumsum()
    # Overflow does no harm: differences are right modulo 2^64, and those of huge values are not used.
    runs = np.where(place == 0, values, sums[:-1] - sums[start_of - place % 2])
    odd = (np.minimum.reduceat(runs, starts) < 0) | (np.maximum.reduceat(groups, starts) > _MOST_GROUPS)
    return np.where(odd, -1, np.add.reduceat(runs, starts)).tolist()
