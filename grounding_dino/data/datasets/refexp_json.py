"""Referring expressions (a phrase and the box it names) as Detectron2 records.

Two layouts are read: ours (`images` and `expressions` of image_id, caption, bbox; see datasets/README.md), and MDETR's
for RefCOCO (one entry of `images` per phrase, with `caption`, and its one annotation).
"""

from __future__ import annotations

import functools
import os
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError, read_coco
from grounding_dino.data.datasets.coco_json import set_metadata

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

Record = dict[str, Any]


def load_refexp(
    json_file: str, image_root: str, dataset_name: str | None = None, group_by_picture: bool = False
) -> list[Record]:
    """Records with a prompt of their own: `categories` holds the expressions, `category_id` indexes them.

    Args:
        group_by_picture: one record a picture with all its expressions, for training; else one record an
            expression, for evaluation, where each is asked for alone.

    Returns:
        records with `file_name, image_id, height, width, categories, referring=True, expression_ids, annotations`.

    Raises:
        FileNotFoundError: the file is not there.
        CocoFormatError: it is not of either layout, or an expression has no caption, box or picture.
    """
    content = read_coco(json_file)
    images = {image.get("id"): image for image in content["images"]}
    groups: dict[Any, list[Record]] = {}
    for index, expression in enumerate(_expressions(content, json_file)):
        _check(expression, images, f"expression {index} of {json_file}")
        picture = images[expression["image_id"]]["file_name"]
        groups.setdefault(picture if group_by_picture else index, []).append(expression)
    if not groups:
        raise CocoFormatError(f"{json_file} has no referring expressions")
    if dataset_name is not None:
        set_metadata(dataset_name, json_file=json_file, image_root=image_root)
    return [_record(group, images[group[0]["image_id"]], image_root) for group in groups.values()]


def register_refexp(name: str, json_file: str, image_root: str, group_by_picture: bool = False) -> None:
    """Make referring expressions known under `name`; nothing is read before it is used.

    Raises:
        ValueError: the name is taken.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    DatasetCatalog.register(name, functools.partial(load_refexp, json_file, image_root, name, group_by_picture))
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type="refexp")


def _expressions(content: Record, json_file: str) -> list[Record]:
    if isinstance(content.get("expressions"), list):
        return [
            {**expression, "id": expression.get("id", index)} for index, expression in enumerate(content["expressions"])
        ]
    captions = {image.get("id"): image["caption"] for image in content["images"] if "caption" in image}
    if not captions:
        raise CocoFormatError(f"{json_file} has neither a list 'expressions' nor captions in its 'images'")
    return [
        {
            "id": annotation["image_id"],  # in MDETR's layout an entry of `images` is one expression
            "image_id": annotation["image_id"],
            "caption": captions[annotation["image_id"]],
            "bbox": annotation.get("bbox"),
        }
        for annotation in content["annotations"]
        if annotation.get("image_id") in captions
    ]


def _check(expression: Record, images: dict[Any, Record], where: str) -> None:
    if not isinstance(expression.get("caption"), str) or not expression["caption"].strip(" .?"):
        raise CocoFormatError(f"{where} has no caption with a word in it")
    image = images.get(expression.get("image_id"))
    if image is None or not all(key in image for key in ("file_name", "height", "width")):
        raise CocoFormatError(f"{where} ({expression['caption']!r}) has no picture with file_name, height and width")
    box = expression.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not (box[2] > 0 and box[3] > 0):
        raise CocoFormatError(f"{where} ({expression['caption']!r}) has no box with an area: {box!r}")


def _record(expressions: list[Record], image: Record, image_root: str) -> Record:
    annotations = [
        {"bbox": expression["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": index, "iscrowd": 0}
        for index, expression in enumerate(expressions)
    ]
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "categories": [expression["caption"] for expression in expressions],
        "referring": True,
        "expression_ids": [expression["id"] for expression in expressions],
        "annotations": annotations,
    }
