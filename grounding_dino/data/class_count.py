"""How many classes a closed-set model has, where the configuration leaves that to the data, and their names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

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


def check_class_count(cfg: CfgNode, names: Sequence[str]) -> None:
    """See that loaded data sets have as many classes as a closed-set model.

    Raises:
        ValueError: one has another number.
    """
    if cfg.MODEL.TEXT_ENCODER.NAME:
        return
    cfg = with_class_count(cfg)
    columns = cfg.MODEL.CLASS_HEAD.CATEGORY_IDS
    known = len(columns) or cfg.MODEL.CLASS_HEAD.NUM_CLASSES
    for name in expand_groups(names):
        classes = MetadataCatalog.get(name).get(_kind_of_classes(cfg)) or ()
        if classes and len(classes) != known:
            key = "MODEL.CLASS_HEAD.CATEGORY_IDS lists" if columns else "MODEL.CLASS_HEAD.NUM_CLASSES is"
            raise ValueError(
                f"the data set {name!r} has {len(classes)} classes, but {key} {known}; name a data set of the model's "
                "classes, or fine-tune on this one with NUM_CLASSES 0 and CATEGORY_IDS [], where class heads begin anew"
            )
        _check_things(cfg, name)


def _check_things(cfg: CfgNode, name: str) -> None:
    """A set without stuff is for the things of a model that finds both, as far as a data set of the run says them."""
    things = MetadataCatalog.get(name).get("thing_classes")
    if _kind_of_classes(cfg) == "thing_classes" or not things or MetadataCatalog.get(name).get("stuff_classes"):
        return
    count = cfg.MODEL.CLASS_HEAD.NUM_CLASSES
    for other in map(MetadataCatalog.get, expand_groups([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])):
        known = other.get("thing_classes") or things
        if len(other.get("stuff_classes", ())) == count and len(known) != len(things):
            raise ValueError(
                f"the data set {name!r} has {len(things)} classes, but of the model's {count} "
                f"{len(known)} are things, as {other.name!r} says; name a data set of the model's classes"
            )


def read_class_names(cfg: CfgNode) -> None:
    """Have the metadata of the sets of DATASETS.EXTRA say their classes, which is known once a file is read.

    The project's own sets are registered by importing this module. A file that is not there any more, or cannot be
    read, is passed over with a log line: a model detects without names.
    """
    mine = set(register_extra_datasets(cfg.DATASETS.EXTRA))
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name not in mine or MetadataCatalog.get(name).get("thing_classes"):
            continue
        try:
            DatasetCatalog.get(name)
        except (OSError, ValueError) as error:
            logger.warning("the class names of the data set %s are not known: %s", name, error)


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
    kind = _kind_of_classes(cfg)
    classes = MetadataCatalog.get(name).get(kind) or ()
    if not classes:
        raise ValueError(
            "MODEL.CLASS_HEAD.NUM_CLASSES is 0, which takes the number of classes from the data, but the data set "
            f"{name!r} has no {kind} in its metadata, which INPUT.MAPPER {cfg.INPUT.MAPPER} needs; give the number"
        )
    logger.info("%d classes, those of the data set %s", len(classes), name)
    return len(classes)


def _kind_of_classes(cfg: CfgNode) -> str:
    """The entry of a data set's metadata that lists a model's classes."""
    return "stuff_classes" if cfg.INPUT.MAPPER in WITH_STUFF else "thing_classes"
