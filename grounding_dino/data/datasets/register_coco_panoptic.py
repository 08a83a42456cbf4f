"""COCO 2017 panoptic: 133 classes, 80 things before 53 stuff, contiguous in the order of their ids.

`coco_2017_{train,val}_panoptic` are Detectron2's, which are kept as they are but for checks when they are read.
`coco_2017_{train,val}_panoptic_with_sem_seg` have semantic maps of the same classes too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.panoptic_json import load_panoptic
from grounding_dino.data.datasets.paths import dataset_root, require
from grounding_dino.data.datasets.register_coco_sets import places_below_root
from grounding_dino.data.datasets.segmentation_classes import SegmentationClass
from grounding_dino.data.datasets.segmentation_sets import register_panoptic_set

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

HINT = (
    "download panoptic_annotations_trainval2017.zip from https://cocodataset.org/#download into coco/ and run "
    "`python datasets/prepare_coco.py --panoptic`, which unpacks it and makes the semantic maps"
)
CLASSES = tuple(
    SegmentationClass(category["id"], category["name"], bool(category["isthing"]), tuple(category["color"]))
    for category in COCO_CATEGORIES
)


def sem_seg_root(split: str) -> str:
    """The folder of semantic maps of "train" or "val" below the folder of data sets."""
    return f"coco/panoptic_semseg_{split}2017"


def register_coco_panoptic() -> None:
    """Register the sets; Detectron2's own only where they are absent."""
    for split in ("train", "val"):
        name = f"coco_2017_{split}_panoptic"
        if name in DatasetCatalog:
            places = places_below_root(name, ("panoptic_json", "image_root", "panoptic_root", "json_file"))
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, functools.partial(_load_as_registered, name, places))
        _register(name, split, "")
        _register(f"{name}_with_sem_seg", split, sem_seg_root(split))


def _register(name: str, split: str, maps: str) -> None:
    register_panoptic_set(
        name,
        CLASSES,
        HINT,
        image_root=f"coco/{split}2017",
        panoptic_root=f"coco/panoptic_{split}2017",
        panoptic_json=f"coco/annotations/panoptic_{split}2017.json",
        json_file=f"coco/annotations/instances_{split}2017.json",
        sem_seg_root=maps,
    )


def _load_as_registered(name: str, places: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read a set by the places below the folder of data sets and the id maps that Detectron2 registered it with."""
    set_metadata(name, **{key: str(dataset_root() / path) for key, path in places.items()})
    metadata = MetadataCatalog.get(name)
    for key in ("panoptic_json", "image_root", "panoptic_root"):
        require(places[key], HINT)
    return load_panoptic(metadata.panoptic_json, metadata.image_root, metadata.panoptic_root, metadata.as_dict())
