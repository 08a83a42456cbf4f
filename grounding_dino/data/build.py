"""Loading data sets for text-prompted models: several at once, each with class names of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grounding_dino.data.datasets  # noqa: F401  registers the project's data sets
from grounding_dino.data.class_count import check_class_count
from grounding_dino.data.datasets.extra import register_extra_datasets
from grounding_dino.data.datasets.groups import expand_config, expand_groups, unknown_name
from grounding_dino.data.datasets.refexp_json import gather_expressions
from grounding_dino.data.datasets.rows import strict_rows
from grounding_dino.data.mappers import build_mapper
from grounding_dino.data.mixture import shares_of
from grounding_dino.data.record_sets import ListRecords, RecordSet, RecordSets, TextKind, has_object
from grounding_dino.data.streaming import LazyRecords

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, get_detection_dataset_dicts

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def load_records(names: Sequence[str], filter_empty: bool = False) -> Sequence[Record]:
    """The records of data sets, each with its `dataset_name`, so that a mapper finds its class names.

    Unlike Detectron2's `get_detection_dataset_dicts`, the data sets may have different classes. Groups of data sets
    (`odinw13`) are their members.

    Args:
        filter_empty: leave out pictures without an object that is no crowd.

    Returns:
        a list; where a set stays on disk (:class:`LazyRecords`), a sequence that reads its records when asked for.

    Raises:
        ValueError: no name, an unknown name, or a data set without a usable record.
    """
    _check_names(names)
    members = expand_groups(names)
    parts = [_load(name, filter_empty) for name in members]
    if any(isinstance(part, LazyRecords) for part in parts):
        return RecordSets([_as_set(part) for part in parts], members)
    return [record for part in parts for record in part]


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not len(names):
        raise ValueError(f"name data sets in a list, e.g. ['shapes_train'], not {names!r}")


def _as_set(records: list[Record] | LazyRecords) -> RecordSet:
    return records if isinstance(records, LazyRecords) else ListRecords(records)


def _load(name: str, filter_empty: bool) -> list[Record] | LazyRecords:
    if name not in DatasetCatalog:
        raise ValueError(unknown_name(name))
    try:
        found = get_detection_dataset_dicts([name], filter_empty=False)
    except AssertionError as error:  # upstream asserts where nothing is left
        raise ValueError(f"the data set {name!r} yields nothing: {error}") from error
    if isinstance(found, LazyRecords):
        kept = found.with_objects() if filter_empty else found
        kept.dataset_name = name
        captions = found.column("text") == TextKind.CAPTION
        _tell_of_sentences(name, int((captions & ~found.column("has_object")).sum()) if filter_empty else 0)
        return kept
    if filter_empty:
        sentences = sum("caption" in record for record in found)
        found = [record for record in found if has_object(record)]
        _tell_of_sentences(name, sentences - sum("caption" in record for record in found))
    if not found:
        raise ValueError(f"the data set {name!r} has no picture with an object; there is nothing to train on")
    return [{**record, "dataset_name": name} for record in found]


def _tell_of_sentences(name: str, left_out: int) -> None:
    """Sentences without a target, which gRefCOCO has on purpose, do not vanish in silence."""
    if left_out:
        logger.warning(
            "%s: %d sentences that name nothing in their picture are left out; to train on them as well, set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False",
            *(name, left_out),
        )


_LEARNED_FROM = {
    "InstanceMapper": ("annotations", "objects with boxes"),
    "PanopticMapper": ("pan_seg_file_name", "panoptic maps"),
    "SemanticMapper": ("sem_seg_file_name", "semantic maps"),
}


def check_annotations(cfg: CfgNode, name: str, records: Sequence[Record]) -> None:
    """See that records in memory have what INPUT.MAPPER makes targets of.

    Objects without a mask, which a model with masks leaves out, are counted in a warning.

    Raises:
        ValueError: they have not, or there are objects, but none with a mask.
    """
    key, what = _LEARNED_FROM.get(cfg.INPUT.MAPPER, ("", ""))
    if key and not any(key in record for record in records):
        others = [mapper for mapper, (other, _) in _LEARNED_FROM.items() if other in records[0]]
        raise ValueError(
            f"INPUT.MAPPER {cfg.INPUT.MAPPER} learns from {what}, which the data set {name!r} does not have; "
            f"{' or '.join(others) or 'no mapper for fixed classes'} goes with it"
        )
    if cfg.INPUT.MAPPER == "InstanceMapper" and cfg.MODEL.MASK_ON:
        _check_masks(name, records)


def _check_masks(name: str, records: Sequence[Record]) -> None:
    objects = [a for record in records for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    without = sum(annotation.get("segmentation") is None for annotation in objects)
    if not without:
        return
    if without == len(objects):
        raise ValueError(
            f"none of the {without} objects of the data set {name!r} has a mask, which MODEL.MASK_ON True is trained "
            "with; name annotations with a segmentation, or train a model of boxes, as DINO is (MODEL.MASK_ON False)"
        )
    logger.warning("%s: %d of %d objects have no mask, and are not trained on", name, without, len(objects))


def load_train_sets(cfg: CfgNode) -> tuple[RecordSets, list[float] | None]:
    """The sets of DATASETS.TRAIN, and the shares of the draws that DATASETS.WEIGHTS gives them (None without weights).

    DATASETS.EXTRA is registered first, pictures without objects are left out as
    DATALOADER.FILTER_EMPTY_ANNOTATIONS says, and broken rows stop the run where DATASETS.STRICT_ON says so.

    Raises:
        ValueError: as :func:`load_records`, :func:`shares_of` and :func:`check_annotations`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    expand_config(cfg)
    register_extra_datasets(cfg.DATASETS.EXTRA)
    names = tuple(cfg.DATASETS.TRAIN)
    _check_names(names)
    shares = shares_of(cfg.DATASETS.WEIGHTS, names) if cfg.DATASETS.WEIGHTS else None
    with strict_rows(cfg.DATASETS.STRICT_ON):
        # One after the other, so that no more than one list is in memory that is not packed yet.
        parts = []
        for name in names:
            part = _load(name, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
            if isinstance(part, list):
                check_annotations(cfg, name, part)
            parts.append(_as_set(part))
    check_class_count(cfg, names)
    return RecordSets(parts, names), shares


def load_train_records(cfg: CfgNode) -> RecordSets:
    """The records of :func:`load_train_sets`."""
    return load_train_sets(cfg)[0]


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """A loader over one data set for evaluation, one picture a batch, with all of its referring expressions."""
    register_extra_datasets(cfg.DATASETS.EXTRA)
    # The records come first: the mapper takes over the class names that loading makes known.
    with strict_rows(cfg.DATASETS.STRICT_ON):
        records = load_records([dataset_name])
    check_class_count(cfg, [dataset_name])
    return build_detection_test_loader(
        records if isinstance(records, RecordSets) else gather_expressions(records),
        mapper=build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
