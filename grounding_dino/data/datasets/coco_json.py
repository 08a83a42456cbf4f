"""COCO-format annotation files as Detectron2 data sets, whoever wrote them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CleaningReport, clean_coco, read_coco
from grounding_dino.ops.loader import cache_root

import pycocotools.mask as coco_mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def load_coco(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    strict: bool = False,
    adapt: Callable[[Record], Record] | None = None,
    image_keys: Sequence[str] = (),
    score_copy: bool = True,
) -> list[Record]:
    """A COCO json as Detectron2's list of records; classes are numbered from 0 in the order of their ids.

    With a `dataset_name` its metadata gets `thing_classes`, `original_names` (the names in the file, where `adapt`
    changed them), `thing_dataset_id_to_contiguous_id`, `image_root` and `json_file`. Where something was repaired,
    `json_file` is a repaired copy in the cache folder, so that what is scored is what was loaded. Crowd regions stay,
    marked `iscrowd`.

    Args:
        strict: refuse a file that needs repairs.
        adapt: changes the content of the file before it is checked, e.g. names of categories or of picture files;
            what is scored (ids, boxes, areas) must stay.
        image_keys: further keys of pictures that their records keep.
        score_copy: make the repaired copy. Without it `json_file` is the file itself: for benchmarks, whose numbers
            are compared with those of others.

    Raises:
        FileNotFoundError: the file or the picture folder is not there.
        CocoFormatError: the file cannot be used (see `coco_cleaning`).
    """
    content = read_coco(json_file)
    content, report = clean_coco(adapt(content) if adapt else content, json_file, image_root)
    report.settle(strict)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    if dataset_name is not None:
        set_metadata(
            dataset_name,
            thing_classes=[category["name"] for category in categories],
            original_names=[category.get("original_name", category["name"]) for category in categories],
            thing_dataset_id_to_contiguous_id=contiguous,
            json_file=_repaired_copy(content, report) if report.findings and score_copy else json_file,
            image_root=image_root,
        )
    return _records(content, image_root, contiguous, image_keys)


def register_coco(name: str, json_file: str, image_root: str, strict: bool = False) -> None:
    """Make a COCO json known under `name` for DATASETS.TRAIN and DATASETS.TEST; nothing is read before it is used.

    Raises:
        ValueError: the name is taken.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    DatasetCatalog.register(name, functools.partial(load_coco, json_file, image_root, name, strict))
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type="coco")


def set_metadata(dataset_name: str, **facts: object) -> None:
    """Set facts of a data set anew: Detectron2's metadata refuses another value, but a file may have changed."""
    metadata = MetadataCatalog.get(dataset_name)
    for key, value in facts.items():
        if key in metadata.as_dict():
            delattr(metadata, key)
        setattr(metadata, key, value)


def _records(content: Record, image_root: str, contiguous: dict[int, int], image_keys: Sequence[str]) -> list[Record]:
    objects: dict[int | str, list[Record]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        item = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": contiguous[annotation["category_id"]],
            "iscrowd": annotation["iscrowd"],
        }
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        if segmentation:
            item["segmentation"] = segmentation
        objects[annotation["image_id"]].append(item)
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            **{key: image[key] for key in image_keys if key in image},
            "annotations": objects[image["id"]],
        }
        for image in content["images"]
    ]


def _repaired_copy(content: Record, report: CleaningReport) -> str:
    """Write repaired annotations to the cache folder, named by their content; returns the path."""
    text = json.dumps(content, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    stem = os.path.splitext(os.path.basename(report.json_file))[0]
    folder = cache_root() / "annotations"
    path = folder / f"{stem}-{digest}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    logger.warning("%s is scored by its repaired copy %s", report.json_file, path)
    return str(path)
