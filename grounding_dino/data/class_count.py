"""How many classes a closed-set model has, where the configuration leaves that to the data."""

from __future__ import annotations

import logging

from grounding_dino.data.datasets import register_extra_datasets
from grounding_dino.data.datasets.groups import expand_groups

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

WITH_STUFF = (
    "PanopticMapper",
    "SemanticMapper",
)  # of INPUT.MAPPER: their classes are `stuff_classes`, things among them


def with_class_count(cfg: CfgNode) -> CfgNode:
    """`cfg` with MODEL.CLASS_HEAD.NUM_CLASSES and MODEL.DENOISING.NUM_LABELS of 0 filled in; it is not changed.

    The classes are those of the first of DATASETS.TRAIN and DATASETS.TEST that there is; an evaluation needs no
    training set. A configuration with text, or one that says both numbers, is returned as it is.

    Raises:
        ValueError: none of the data sets is registered, or the one found has no classes.
    """
    if cfg.MODEL.TEXT_ENCODER.NAME or (cfg.MODEL.CLASS_HEAD.NUM_CLASSES and cfg.MODEL.DENOISING.NUM_LABELS):
        return cfg
    classes = cfg.MODEL.CLASS_HEAD.NUM_CLASSES or _count_classes(cfg)
    filled = cfg.clone()
    filled.defrost()
    filled.MODEL.CLASS_HEAD.NUM_CLASSES = classes
    filled.MODEL.DENOISING.NUM_LABELS = cfg.MODEL.DENOISING.NUM_LABELS or classes
    if cfg.is_frozen():
        filled.freeze()
    return filled


def _count_classes(cfg: CfgNode) -> int:
    register_extra_datasets(cfg.DATASETS.EXTRA)
    named = expand_groups([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    name = next((name for name in named if name in DatasetCatalog), None)
    if name is None:
        raise ValueError(
            "MODEL.CLASS_HEAD.NUM_CLASSES is 0, which takes the number of classes from the data, but of "
            f"DATASETS.TRAIN and DATASETS.TEST, {named}, none is registered; name one, or give the number"
        )
    DatasetCatalog.get(name)  # COCO files say their classes when they are read
    kind = "stuff_classes" if cfg.INPUT.MAPPER in WITH_STUFF else "thing_classes"
    classes = MetadataCatalog.get(name).get(kind) or ()
    if not classes:
        raise ValueError(
            "MODEL.CLASS_HEAD.NUM_CLASSES is 0, which takes the number of classes from the data, but the data set "
            f"{name!r} has no {kind} in its metadata, which INPUT.MAPPER {cfg.INPUT.MAPPER} needs; give the number"
        )
    logger.info("%d classes, those of the data set %s", len(classes), name)
    return len(classes)
