"""Formats of data sets, and the data sets that are known by name."""

from . import builtin
from .coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from .lvis import load_lvis_json, register_lvis_instances

__all__ = [
    "builtin",
    "convert_to_coco_json",
    "load_coco_json",
    "load_lvis_json",
    "load_sem_seg",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_lvis_instances",
]
