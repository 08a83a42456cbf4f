"""Loading data sets for text-prompted models: several at once, each with class names of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grounding_dino.data.datasets  # noqa: F401  registers the project's data sets
from grounding_dino.data.datasets.extra import register_extra_datasets
from grounding_dino.data.mappers import build_mapper

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, get_detection_dataset_dicts

logger = logging.getLogger(__name__)


def load_records(names: Sequence[str], filter_empty: bool = False) -> list[dict[str, Any]]:
    """The records of data sets, each with its `dataset_name`, so that a mapper finds its class names.

    Unlike Detectron2's `get_detection_dataset_dicts`, the data sets may have different classes.

    Args:
        filter_empty: leave out pictures without an object that is no crowd.

    Raises:
        ValueError: no name, an unknown name, or a data set without a usable record.
    """
    if isinstance(names, str) or not len(names):
        raise ValueError(f"name data sets in a list, e.g. ['shapes_train'], not {names!r}")
    records = []
    for name in names:
        if name not in DatasetCatalog:
            raise ValueError(
                f"there is no data set {name!r}; the known ones are {', '.join(sorted(DatasetCatalog))}. Any COCO json "
                f"can be named with --dataset {name}=annotations.json:image_folder"
            )
        try:
            found = get_detection_dataset_dicts([name], filter_empty=filter_empty)
        except AssertionError as error:  # upstream asserts where nothing is left
            raise ValueError(f"the data set {name!r} yields nothing: {error}") from error
        if not found:
            raise ValueError(f"the data set {name!r} has no picture with an object; there is nothing to train on")
        records += [{**record, "dataset_name": name} for record in found]
    return records


def load_train_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """Records of DATASETS.TRAIN, with DATASETS.EXTRA registered first and pictures without objects left out as
    DATALOADER.FILTER_EMPTY_ANNOTATIONS says."""
    register_extra_datasets(cfg.DATASETS.EXTRA)
    return load_records(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """A loader over one data set for evaluation, one picture a batch."""
    register_extra_datasets(cfg.DATASETS.EXTRA)
    # The records come first: the mapper takes over the class names that loading makes known.
    records = load_records([dataset_name])
    return build_detection_test_loader(
        records, mapper=build_mapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
