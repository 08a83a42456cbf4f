"""LVIS's json format (Gupta et al. 2019): COCO's, with categories that were looked for and not found in a picture."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


def _lvis_meta(categories: list[dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    return {
        # the first synonym, as LVIS itself names its classes; other files of this format only have a name
        "thing_classes": [
            category["synonyms"][0] if category.get("synonyms") else category["name"] for category in ordered
        ],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(ordered)},
        "class_image_count": [
            {"id": category["id"], "image_count": category["image_count"]}
            for category in ordered
            if "image_count" in category
        ],
    }


def _image_file(image: dict[str, Any], image_root: str) -> str:
    if "file_name" in image:  # version 0.5 has COCO 2014's names for pictures that now lie in COCO 2017's folders
        name = str(image["file_name"])
        return os.path.join(image_root, name[-16:] if name.startswith("COCO") else name)
    split, name = image["coco_url"].split("/")[-2:]
    return os.path.join(image_root, split, name)


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a json file in LVIS's format.

    Args:
        image_root: folder that holds COCO's splits (or the file names).
        dataset_name: set the class names of this data set's metadata from the file.
        extra_annotation_keys: keys of annotations to keep besides bbox, category_id and segmentation.

    Returns:
        one dict a picture: file_name, height, width, image_id, not_exhaustive_category_ids, neg_category_ids (the
        file's ids), annotations (with indices without gaps).

    Raises:
        ValueError: annotation ids repeat.
    """
    with PathManager.open(json_file) as file:
        content = json.load(file)
    meta = _lvis_meta(content["categories"])
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).set(**meta)
    id_map = meta["thing_dataset_id_to_contiguous_id"]
    annotations = content.get("annotations", [])
    if len({annotation["id"] for annotation in annotations}) != len(annotations):
        raise ValueError(f"annotation ids in {json_file} are not unique: number them anew.")
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        obj = {key: annotation[key] for key in extra_annotation_keys or ()}
        obj.update(
            bbox=annotation["bbox"],
            bbox_mode=BoxMode.XYWH_ABS,
            category_id=id_map[annotation["category_id"]],
            segmentation=annotation["segmentation"],
        )
        of_image[annotation["image_id"]].append(obj)
    records = [
        {
            "file_name": _image_file(image, image_root),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
            "neg_category_ids": image.get("neg_category_ids", []),
            "annotations": of_image[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: int(image["id"]))
    ]
    logger.info("read %d pictures in LVIS format from %s", len(records), json_file)
    return records


def register_lvis_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Make a data set in LVIS's format known as `name`, evaluated as LVIS."""
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)
