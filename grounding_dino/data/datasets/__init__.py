"""Data sets by name. Importing this package registers the ones the project brings, as Detectron2's own does."""

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.coco_json import load_coco, register_coco
from grounding_dino.data.datasets.extra import parse_dataset_argument, register_extra_datasets
from grounding_dino.data.datasets.grit import GritReader, load_grit, register_grit
from grounding_dino.data.datasets.groups import dataset_groups, expand_config, expand_groups, unknown_name
from grounding_dino.data.datasets.mdetr import load_mdetr, register_mdetr
from grounding_dino.data.datasets.odvg import OdvgReader, load_odvg, register_odvg
from grounding_dino.data.datasets.refexp_json import load_refexp, register_refexp
from grounding_dino.data.datasets.register_ade20k import register_ade20k
from grounding_dino.data.datasets.register_cityscapes import register_cityscapes
from grounding_dino.data.datasets.register_coco_panoptic import register_coco_panoptic
from grounding_dino.data.datasets.register_coco_sets import register_coco_sets
from grounding_dino.data.datasets.register_d3 import register_d3
from grounding_dino.data.datasets.register_flickr30k import register_flickr30k
from grounding_dino.data.datasets.register_grounding import register_grounding
from grounding_dino.data.datasets.register_lvis import register_lvis
from grounding_dino.data.datasets.register_odinw import register_odinw
from grounding_dino.data.datasets.register_refcoco import register_refcoco
from grounding_dino.data.datasets.register_shapes import register_shapes
from grounding_dino.data.datasets.rows import RowError, RowReport

__all__ = [
    "CocoFormatError",
    "GritReader",
    "OdvgReader",
    "RowError",
    "RowReport",
    "dataset_groups",
    "expand_config",
    "expand_groups",
    "load_coco",
    "load_grit",
    "load_mdetr",
    "load_odvg",
    "load_refexp",
    "parse_dataset_argument",
    "register_ade20k",
    "register_cityscapes",
    "register_coco",
    "register_coco_panoptic",
    "register_coco_sets",
    "register_d3",
    "register_extra_datasets",
    "register_flickr30k",
    "register_grit",
    "register_grounding",
    "register_lvis",
    "register_mdetr",
    "register_odinw",
    "register_odvg",
    "register_refcoco",
    "register_refexp",
    "register_shapes",
    "unknown_name",
]

register_shapes()
register_coco_sets()
register_coco_panoptic()
register_ade20k()
register_cityscapes()
register_lvis()
register_odinw()
register_refcoco()
register_flickr30k()
register_d3()
register_grounding()
