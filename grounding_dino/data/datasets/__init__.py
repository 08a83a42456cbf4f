"""Data sets by name. Importing this package registers the ones the project brings, as Detectron2's own does."""

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.coco_json import load_coco, register_coco
from grounding_dino.data.datasets.extra import parse_dataset_argument, register_extra_datasets
from grounding_dino.data.datasets.groups import dataset_groups, expand_config, expand_groups, unknown_name
from grounding_dino.data.datasets.refexp_json import load_refexp, register_refexp
from grounding_dino.data.datasets.register_coco_sets import register_coco_sets
from grounding_dino.data.datasets.register_lvis import register_lvis
from grounding_dino.data.datasets.register_odinw import register_odinw
from grounding_dino.data.datasets.register_shapes import register_shapes

__all__ = [
    "CocoFormatError",
    "dataset_groups",
    "expand_config",
    "expand_groups",
    "load_coco",
    "load_refexp",
    "parse_dataset_argument",
    "register_coco",
    "register_coco_sets",
    "register_extra_datasets",
    "register_lvis",
    "register_odinw",
    "register_refexp",
    "register_shapes",
    "unknown_name",
]

register_shapes()
register_coco_sets()
register_lvis()
register_odinw()
