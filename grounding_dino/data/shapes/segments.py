"""Panoptic and semantic maps of drawn pictures: the objects' masks, and the kind of background around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.data.segmentation_maps import write_panoptic_map
from grounding_dino.data.shapes.vocabulary import STUFF_IDS, TRAIN_PAIRS

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


class SegmentFolders(NamedTuple):
    """Where the maps of a split go."""

    panoptic: str
    sem_seg: str


class SegmentJob(NamedTuple):
    """One picture: its entry and its objects in the COCO annotations, and the index of its kind of background."""

    image: dict[str, Any]
    objects: list[dict[str, Any]]
    background: int
    folders: SegmentFolders


def write_segments(job: SegmentJob) -> dict[str, Any]:
    """Write the two maps of a picture; returns its entry in COCO's panoptic json.

    Segment ids count from 1, the objects before the background. The classes of the semantic map count from 0: the
    objects' categories in the order of their ids, then the backgrounds.
    """
    height, width = job.image["height"], job.image["width"]
    ids = np.zeros((height, width), dtype=np.int64)
    classes = np.empty((height, width), dtype=np.uint8)
    for index, item in enumerate(job.objects):
        inside = coco_mask.decode(item["segmentation"]).astype(bool)
        ids[inside] = index + 1
        classes[inside] = item["category_id"] - 1
    segments = [
        {"id": index + 1, **{key: item[key] for key in ("category_id", "area", "bbox", "iscrowd")}}
        for index, item in enumerate(job.objects)
    ]
    behind = ids == 0
    if behind.any():
        segments.append(_background(behind, len(segments) + 1, list(STUFF_IDS.values())[job.background]))
        ids[behind] = segments[-1]["id"]
    classes[behind] = len(TRAIN_PAIRS) + job.background
    name = Path(job.image["file_name"]).with_suffix(".png").name
    write_panoptic_map(Path(job.folders.panoptic, name), ids)
    Image.fromarray(classes).save(Path(job.folders.sem_seg, name))
    return {"image_id": job.image["id"], "file_name": name, "segments_info": segments}


def _background(mask: np.ndarray, number: int, category: int) -> dict[str, Any]:
    x, y, width, height = (
        int(value) for value in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
    )
    box = [x, y, width, height]
    return {"id": number, "category_id": category, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
