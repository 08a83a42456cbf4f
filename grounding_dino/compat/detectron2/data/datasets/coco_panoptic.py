"""COCO's panoptic format: a json file of segments and a png file a picture that holds their ids as colours."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog
from .coco import load_coco_json, load_sem_seg

IGNORED_LABEL = 255


def load_coco_panoptic_json(json_file: str, image_dir: str, gt_dir: str, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Read panoptic annotations.

    Args:
        meta: the id maps of things and stuff, by which the segments' category ids become indices.

    Returns:
        one dict a picture: file_name, image_id, pan_seg_file_name, segments_info.

    Raises:
        FileNotFoundError: the first picture or its png is not there.
    """
    with PathManager.open(json_file) as file:
        content = json.load(file)
    records = []
    for annotation in content["annotations"]:
        stem = os.path.splitext(annotation["file_name"])[0]
        records.append(
            {
                "file_name": os.path.join(image_dir, stem + ".jpg"),
                "image_id": int(annotation["image_id"]),
                "pan_seg_file_name": os.path.join(gt_dir, annotation["file_name"]),
                "segments_info": [_convert_segment(segment, meta) for segment in annotation["segments_info"]],
            }
        )
    for path in (records[0]["file_name"], records[0]["pan_seg_file_name"]) if records else ():
        if not PathManager.isfile(path):
            raise FileNotFoundError(
                f"{path}, named by {json_file}, is not there: see the folder tree for panoptic data."
            )
    return records


def _convert_segment(segment: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    converted = copy.copy(segment)
    things = meta["thing_dataset_id_to_contiguous_id"]
    converted["isthing"] = segment["category_id"] in things
    id_map = things if converted["isthing"] else meta["stuff_dataset_id_to_contiguous_id"]
    converted["category_id"] = id_map[segment["category_id"]]
    return converted


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Make a panoptic data set known as `name`, with things and stuff in one set of classes.

    Args:
        instances_json: the instance annotations of the same pictures, for evaluating boxes and masks.
    """
    DatasetCatalog.register(name, lambda: load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata))
    MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=IGNORED_LABEL,
        label_divisor=1000,
        **metadata,
    )


def merge_to_panoptic(
    detection_dicts: list[dict[str, Any]], sem_seg_dicts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Records with both instances and label maps, joined by the pictures' file names.

    Raises:
        ValueError: a label map's picture has no instance record.
    """
    by_file = {record["file_name"]: record for record in detection_dicts}
    merged = []
    for record in sem_seg_dicts:
        if record["file_name"] not in by_file:
            raise ValueError(f"{record['file_name']} has a label map, but no instance record.")
        merged.append({**by_file[record["file_name"]], **record})
    return merged


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Make known `name` + "_separated" (instances and stuff label maps) and `name` + "_stuffonly" (label maps)."""
    separated, stuff_only = name + "_separated", name + "_stuffonly"
    DatasetCatalog.register(
        separated,
        lambda: merge_to_panoptic(
            load_coco_json(instances_json, image_root, separated), load_sem_seg(sem_seg_root, image_root)
        ),
    )
    MetadataCatalog.get(separated).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        sem_seg_root=sem_seg_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=IGNORED_LABEL,
        **metadata,
    )
    DatasetCatalog.register(stuff_only, lambda: load_sem_seg(sem_seg_root, image_root))
    MetadataCatalog.get(stuff_only).set(
        sem_seg_root=sem_seg_root,
        image_root=image_root,
        evaluator_type="sem_seg",
        ignore_label=IGNORED_LABEL,
        **metadata,
    )
