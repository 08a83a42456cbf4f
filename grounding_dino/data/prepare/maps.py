"""What preparations of segmentation maps share: many pictures at once, facts of segments, masks of instances."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from grounding_dino.data.datasets.segmentation_classes import SegmentationClass
from grounding_dino.data.prepare.files import write_json

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")
Record = dict[str, Any]

_CHUNK = 16  # pictures that a process is given at a time


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """The number of processes, as an option of a preparation."""
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that convert maps; default: one a processor"
    )


def for_each(
    function: Callable[[Item], Result], items: Sequence[Item], title: str, workers: int, quiet: bool
) -> list[Result]:
    """`function` of every item, in their order; it has to be picklable where there are several `workers`."""
    progress = functools.partial(tqdm, total=len(items), desc=title, disable=quiet)
    if workers <= 1:
        return list(progress(map(function, items)))
    # Not forked: a copy of a process whose libraries run threads can hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(progress(pool.map(function, items, chunksize=_CHUNK)))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file under another name with the same ending, and move it when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial_{os.getpid()}_{path.name}")
    write(partial)
    os.replace(partial, path)


def write_semantic_map(path: Path, classes: NDArray[np.uint8]) -> None:
    """Write the class of each pixel (H, W) as a grey PNG."""
    write_whole(path, Image.fromarray(classes).save)


def describe_segments(ids: NDArray[np.int64]) -> dict[int, Record]:
    """`area` and `bbox` (XYWH, whole pixels) of every number in a map (H, W) but 0, by ascending number."""
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    numbers, starts, areas = np.unique(flat[order], return_index=True, return_counts=True)
    ys, xs = order // ids.shape[1], order % ids.shape[1]
    left, top = np.minimum.reduceat(xs, starts), np.minimum.reduceat(ys, starts)
    width, height = np.maximum.reduceat(xs, starts) - left + 1, np.maximum.reduceat(ys, starts) - top + 1
    boxes = np.stack([left, top, width, height], axis=1).tolist()
    return {
        int(number): {"area": int(area), "bbox": box} for number, area, box in zip(numbers, areas, boxes) if number != 0
    }


def instance_of(mask: NDArray[np.bool_], facts: Record) -> Record:
    """An annotation as a COCO json has it: `facts` (of the segment, its category, ...) and the mask (H, W) as RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**facts, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")}}


def write_annotations(
    made: Sequence[tuple[Record, list[Record], Record]],
    classes: Sequence[SegmentationClass],
    instance_json: Path,
    panoptic_json: Path,
) -> None:
    """Write a COCO json of the things and a panoptic json of all classes.

    Args:
        made: of each picture its entry, its instances (:func:`instance_of`) and its panoptic annotation.
    """
    images = [image for image, _, _ in made]
    owned = [{**item, "image_id": image["id"]} for image, items, _ in made for item in items]
    instances = [{"id": number, **item} for number, item in enumerate(owned, start=1)]
    things = [{"id": c.number, "name": c.name} for c in classes if c.is_thing]
    write_json(instance_json, {"images": images, "annotations": instances, "categories": things})
    categories = [{"id": c.number, "name": c.name, "isthing": int(c.is_thing), "color": c.color} for c in classes]
    segments = [annotation for _, _, annotation in made]
    write_json(panoptic_json, {"images": images, "annotations": segments, "categories": categories})
