"""COCO and LVIS under their usual names, expected below the folder DETECTRON2_DATASETS (default: ./datasets).

Nothing is read here: a registered data set is loaded when it is asked for.
"""

from __future__ import annotations

import os

from ..catalog import DatasetCatalog
from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from .lvis import register_lvis_instances

# name -> (image folder, annotation file), below the root
_COCO = {
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
    "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
    "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
    "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
    "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
}

# name -> (panoptic png folder, panoptic json, semantic png folder); the pictures are those of the name's instances
_COCO_PANOPTIC = {
    f"coco_2017_{split}_panoptic": (
        f"coco/panoptic_{part}",
        f"coco/annotations/panoptic_{part}.json",
        f"coco/panoptic_stuff_{part}",
    )
    for split, part in (("train", "train2017"), ("val", "val2017"), ("val_100", "val2017_100"))
}

_LVIS = {
    "lvis_v1_train": ("coco", "lvis/lvis_v1_train.json"),
    "lvis_v1_val": ("coco", "lvis/lvis_v1_val.json"),
    "lvis_v1_test_dev": ("coco", "lvis/lvis_v1_image_info_test_dev.json"),
    "lvis_v1_test_challenge": ("coco", "lvis/lvis_v1_image_info_test_challenge.json"),
    "lvis_v0.5_train": ("coco", "lvis/lvis_v0.5_train.json"),
    "lvis_v0.5_val": ("coco", "lvis/lvis_v0.5_val.json"),
}


def register_all_coco(root: str) -> None:
    """Register COCO's instance and panoptic splits below `root`, but for names that are taken."""
    for name, (image_root, json_file) in _COCO.items():
        if name not in DatasetCatalog:
            metadata = _get_builtin_metadata("coco")
            register_coco_instances(name, metadata, os.path.join(root, json_file), os.path.join(root, image_root))
    for name, (png_root, panoptic_json, sem_seg_root) in _COCO_PANOPTIC.items():
        if name in DatasetCatalog:
            continue
        image_root, instances_json = (os.path.join(root, path) for path in _COCO[name.removesuffix("_panoptic")])
        png_root, panoptic_json = os.path.join(root, png_root), os.path.join(root, panoptic_json)
        register_coco_panoptic(
            name,
            _get_builtin_metadata("coco_panoptic_standard"),
            image_root,
            png_root,
            panoptic_json,
            instances_json,
        )
        register_coco_panoptic_separated(
            name,
            _get_builtin_metadata("coco_panoptic_separated"),
            image_root,
            png_root,
            panoptic_json,
            os.path.join(root, sem_seg_root),
            instances_json,
        )


def register_all_lvis(root: str) -> None:
    """Register LVIS below `root`, but for names that are taken; its classes are read off the file when loaded."""
    for name, (image_root, json_file) in _LVIS.items():
        if name not in DatasetCatalog:
            register_lvis_instances(name, {}, os.path.join(root, json_file), os.path.join(root, image_root))


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_lvis(_root)
