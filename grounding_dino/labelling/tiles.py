"""Small objects: a picture is looked at in overlapping squares, too, and what several of them show is one object."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from grounding_dino.text.names import normalised_name

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Detection = dict[str, Any]

_AT_BORDER = 2.0  # pixels: a box that ends this close to a tile's border may have been cut there
_COVERED = 0.5  # share of a cut box that lies in another, larger one: then it is a piece of that


class Tile(NamedTuple):
    """Part of a picture, in its pixels; the borders x1 and y1 do not belong to it."""

    x0: int
    y0: int
    x1: int
    y1: int


def tiles_of(height: int, width: int, size: int, overlap: float) -> list[Tile]:
    """The squares of `size` pixels that cover a picture, row by row; [] for a picture that is no larger than one.

    Neighbours share at least `overlap` of a tile, and lie evenly. An object smaller than that is whole in one of them.
    """
    if max(height, width) <= size:
        return []
    rows, columns = (_starts(length, size, overlap) for length in (height, width))
    return [Tile(x, y, min(x + size, width), min(y + size, height)) for y, x in itertools.product(rows, columns)]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    if length <= size:
        return [0]
    step = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // step) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def moved(found: Sequence[Detection], tile: Tile, height: int, width: int) -> list[Detection]:
    """Detections in a tile as those of the picture of `height` x `width`.

    Boxes that end at a border of the tile inside of the picture get `cut`.
    """
    shift = (tile.x0, tile.y0, tile.x0, tile.y0)
    inner = (tile.x0 > 0, tile.y0 > 0, tile.x1 < width, tile.y1 < height)
    result = []
    for detection in found:
        box = [round(value + by, 2) for value, by in zip(detection["box"], shift)]
        is_cut = any(
            inside and abs(value - border) <= _AT_BORDER for inside, value, border in zip(inner, box, tile, strict=True)
        )
        entry = {**detection, "box": box, "cut": is_cut}
        if "mask" in detection:
            entry["mask"] = _moved_mask(detection["mask"], tile, height, width)
        result.append(entry)
    return result


def _moved_mask(mask: dict[str, Any], tile: Tile, height: int, width: int) -> dict[str, Any]:
    whole = np.zeros((height, width), dtype=np.uint8, order="F")
    whole[tile.y0 : tile.y1, tile.x0 : tile.x1] = coco_mask.decode(mask)
    encoded = coco_mask.encode(whole)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def without_pieces(found: Sequence[Detection]) -> list[Detection]:
    """Detections without those cut at a tile's border that are a piece of a larger one of the same class.

    A box that ends at the border and lies in no other stays: it may be an object that ends there.
    """
    boxes, classes = _boxes(found), _classes(found)
    areas = _areas(boxes)
    kept = []
    for place, detection in enumerate(found):
        if detection.get("cut"):
            corners = np.concatenate(
                [np.maximum(boxes[:, :2], boxes[place, :2]), np.minimum(boxes[:, 2:], boxes[place, 2:])], axis=1
            )
            shared = _areas(corners)
            larger = (classes == classes[place]) & (areas > areas[place])
            if (shared[larger] > _COVERED * areas[place]).any():
                continue
        kept.append(detection)
    return [{key: value for key, value in detection.items() if key != "cut"} for detection in kept]


def class_wise_nms(found: Sequence[Detection], iou: float | None) -> list[Detection]:
    """The detections that are no worse double of another of their class, best first; all of them without `iou`."""
    if iou is None or not found:
        return list(found)
    from torchvision.ops import batched_nms

    boxes = torch.from_numpy(_boxes(found)).float()
    scores = torch.tensor([detection["score"] for detection in found])
    kept = batched_nms(boxes, scores, torch.from_numpy(_classes(found)), iou)
    return [found[place] for place in sorted(kept.tolist(), key=lambda place: (-found[place]["score"], place))]


def _boxes(found: Sequence[Detection]) -> NDArray[np.float64]:
    return np.array([detection["box"] for detection in found], dtype=np.float64).reshape(-1, 4)


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return areas


def _classes(found: Sequence[Detection]) -> NDArray[np.int64]:
    places: dict[str, int] = {}
    names = (normalised_name(detection["label"]) for detection in found)
    return np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
