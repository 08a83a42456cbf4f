"""Data sets by name. Importing this package registers the ones the project brings, as Detectron2's own does."""

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.coco_json import load_coco, register_coco
from grounding_dino.data.datasets.extra import parse_dataset_argument, register_extra_datasets
from grounding_dino.data.datasets.refexp_json import load_refexp, register_refexp
from grounding_dino.data.datasets.register_shapes import register_shapes

__all__ = [
    "CocoFormatError",
    "load_coco",
    "load_refexp",
    "parse_dataset_argument",
    "register_coco",
    "register_extra_datasets",
    "register_refexp",
    "register_shapes",
]

register_shapes()
