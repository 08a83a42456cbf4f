"""ODVG: JSON lines of detection and grounding, as Open-GroundingDino, mmdet and NVIDIA TAO use them.

A line is a picture (`filename`, `height`, `width`) with `detection: {"instances": [{"bbox": [x0, y0, x1, y1], "label",
"category"}]}`, whose labels a map {"0": "name"} explains, or with `grounding: {"caption", "regions": [{"bbox": one or
several, "phrase", "tokens_positive": [[start, stop]]}]}`. See datasets/README.md for the variants that are read.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.data.datasets.captions import Region, caption_record, find_phrase, picture_facts
from grounding_dino.data.datasets.coco_cleaning import (
    CleaningReport,
    CocoFormatError,
    check_name,
    clean_box,
    clean_segmentation,
    is_integer,
    is_number,
)
from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.label_names import prompt_name
from grounding_dino.data.datasets.rows import (
    PHRASES_EVALUATOR,
    RowError,
    RowReport,
    check_pictures,
    check_yield,
    json_line_files,
    read_json_lines,
    read_rows,
    with_own_ids,
)
from grounding_dino.text.prompt import normalised_name

import pycocotools.mask as coco_mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

Record = dict[str, Any]


class OdvgReader:
    """Turns a row into a record; see the module for the layouts. It can be pickled, and keeps nothing of a row.

    A row that holds both `detection` and `grounding` is read as detection where there are names, else as grounding.

    Args:
        image_root: the folder that `filename` is relative to.
        names: label -> name; annotations index `class_names`, the names in the order of their labels. None takes each
            row's own `category` texts, and prompts for a picture know no other names then.
        object_keys: further keys of objects (`detection`) that their annotations keep.
        fixes: given, `class_names` are written for prompts, see `label_names.prompt_name`; {} corrects none.
    """

    def __init__(
        self,
        image_root: str,
        names: Mapping[int, str] | None = None,
        object_keys: Sequence[str] = (),
        fixes: Mapping[str, str] | None = None,
    ) -> None:
        self.image_root = image_root
        self.object_keys = tuple(object_keys)
        self.names = None if names is None else dict(names)
        ordered = sorted(self.names or ())
        written = [(self.names or {})[label] for label in ordered]
        self.class_names = written if fixes is None else [prompt_name(name, fixes) for name in written]
        self._places = {label: place for place, label in enumerate(ordered)}
        self._by_name: dict[str, int] = {}  # rows may write names as the map does, or as prompts do
        for place, name in [*enumerate(written), *enumerate(self.class_names)]:
            self._by_name.setdefault(normalised_name(name), place)

    def __call__(self, row: Record, report: CleaningReport | None = None) -> Record:
        """The record of a row; `report` counts what was repaired in it.

        Raises:
            RowError: the row cannot be used.
        """
        report = CleaningReport("") if report is None else report
        facts = picture_facts(row, self.image_root)
        kinds = [kind for kind in ("detection", "grounding") if isinstance(row.get(kind), dict)]
        if not kinds:
            raise RowError("neither 'detection' nor 'grounding'", f"the row has {', '.join(map(str, row))[:200]}")
        kind = kinds[0] if self.names is not None else kinds[-1]
        read = self._detection if kind == "detection" else self._grounding
        return read(row[kind], facts, report)

    # ------------------------------------------------------------------------------------------------ detection

    def _detection(self, content: Record, facts: Record, report: CleaningReport) -> Record:
        own_names: list[str] = []
        annotations = []
        for instance in _objects(content.get("instances"), "instances", facts):
            place = self._place(instance, own_names, facts, report)
            if place is not None:
                annotation = _annotation(instance, facts, report, self.object_keys)
                if annotation is not None:
                    annotations.append({**annotation, "category_id": place})
        record = {**facts, "annotations": annotations}
        if self.names is not None:
            return record
        if not own_names:
            raise RowError("a detection row without named objects and without a label map", facts["file_name"])
        return {**record, "categories": own_names}

    def _place(self, instance: Record, own_names: list[str], facts: Record, report: CleaningReport) -> int | None:
        """The class index of an object; None, and a note, where it has none."""
        label, category = _label(instance.get("label")), instance.get("category")
        example = f"label {instance.get('label')!r}, category {category!r} in {facts['file_name']}"
        if self.names is not None:
            if label is not None:
                place = self._places.get(label)
                kind = "labels that are not in the map"
            else:
                place = self._by_name.get(normalised_name(category)) if isinstance(category, str) else None
                kind = "categories that are not in the map"
            if place is None:
                report.note(f"dropped objects of {kind}", example)
            return place
        if not isinstance(category, str) or not any(map(str.isalnum, category)):
            report.note("dropped objects of a category without a name", example)
            return None
        if category not in own_names:
            own_names.append(category)
        return own_names.index(category)

    # ------------------------------------------------------------------------------------------------ grounding

    def _grounding(self, content: Record, facts: Record, report: CleaningReport) -> Record:
        caption = content.get("caption")
        regions = []
        for region in _objects(content.get("regions"), "regions", facts):
            spans = region.get("tokens_positive")
            if not spans:
                spans = find_phrase(region.get("phrase"), caption if isinstance(caption, str) else "")
            boxes = region.get("bbox")
            if not (isinstance(boxes, list) and all(isinstance(box, list) for box in boxes)):  # one box; [] is none
                boxes = [boxes]
            regions.append(Region(spans, [_as_xywh(box) for box in boxes]))
        return caption_record(facts, caption, regions, report)


def _objects(value: object, key: str, facts: Record) -> list[Record]:
    """The list of objects under a key; a missing one is empty, as in pictures without any."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RowError(f"{key!r} is no list of objects", facts["file_name"])
    return value


def _label(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if is_integer(value) else None


def _as_xywh(box: object) -> object:
    """Corners as corner and size; what is no box stays as it is, for the cleaning to name."""
    if isinstance(box, (list, tuple)) and len(box) == 4 and all(map(is_number, box)):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box


def _annotation(instance: Record, facts: Record, report: CleaningReport, keys: Sequence[str]) -> Record | None:
    box = _as_xywh(instance.get("bbox"))
    example = f"an object of {facts['file_name']}"
    cleaned = clean_box({"bbox": box}, facts, example, report)
    if cleaned is None:
        return None
    annotation = {key: instance[key] for key in keys if key in instance}
    annotation |= {
        "bbox": cleaned["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": int(instance.get("iscrowd") == 1),
    }
    mask = clean_segmentation(instance.get("segmentation"), facts, example, report)
    if isinstance(mask, dict) and isinstance(mask["counts"], list) and "segmentation" not in keys:
        mask = coco_mask.frPyObjects(mask, *mask["size"])  # one that is kept stays as JSON can hold it
    annotation.pop("segmentation", None)
    return {**annotation, "segmentation": mask} if mask else annotation


# ---------------------------------------------------------------------------------------------------- label maps


def read_label_map(path: str, report: CleaningReport | None = None) -> dict[int, str]:
    """The names of a label map, json of {"0": "person", ...} or of a list.

    A label whose name no prompt holds is left out and counted in `report`; without a report it is an error.

    Raises:
        FileNotFoundError: no such file.
        RowError: another layout, or no name.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no label map {path!r}; it is json of {{'0': 'person', ...}}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise RowError("a label map that is not readable as JSON", f"{path}: {error}") from error
    pairs = list(enumerate(content)) if isinstance(content, list) else list(getattr(content, "items", list)())
    names: dict[int, str] = {}
    for key, name in pairs:
        label = _label(key)
        if label is None or label in names:
            raise RowError("a label map whose keys are not all different whole numbers", f"{path}: {key!r}")
        fault = _name_fault(name, f"{path}, label {label}: the name {name!r}")
        if not fault:
            names[label] = name
        elif report is None:
            raise RowError("a category without a name", fault)
        else:
            report.note("left out labels without a usable name", fault)
    if not names:
        raise RowError("a label map without a name", f"{path}; it is json of {{'0': 'person', ...}}")
    return names


def _name_fault(name: object, where: str) -> str:
    if not isinstance(name, str):
        return f"{where} is no text"
    try:
        check_name(name, where)
    except CocoFormatError as error:
        return str(error)
    return ""


def find_label_map(path: str) -> str | None:
    """The label map beside a row file or folder: `<stem>_label_map.json`, else `label_map.json`; None without one."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    for name in (f"{stem}_label_map.json", "label_map.json"):
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    return None


def collect_names(files: Sequence[str]) -> dict[int, str] | None:
    """The names that detection rows carry themselves, in `label` and `category`; None where they name nothing.

    Reads every row, in order. Categories without a label are counted on from the largest label, by the alphabet.

    Raises:
        RowError: a label has two categories.
    """
    names: dict[int, str] = {}
    unlabelled: set[str] = set()
    unheard = RowReport("")  # broken lines are reported when the rows are read for their records
    for path in files:
        for line, row in read_json_lines(path, unheard):
            for instance in _instances(row):
                label, category = _label(instance.get("label")), instance.get("category")
                if not isinstance(category, str) or not any(map(str.isalnum, category)):
                    continue
                if label is None:
                    unlabelled.add(category)
                elif names.setdefault(label, category) != category:
                    raise RowError(
                        "a label of two categories",
                        f"{path}:{line}: label {label} is {category!r}, and {names[label]!r} before; give a label map",
                    )
    known = {normalised_name(name) for name in names.values()}
    fresh = sorted(name for name in unlabelled if normalised_name(name) not in known)
    names.update(enumerate(fresh, max(names, default=-1) + 1))
    return names or None


def _instances(row: Record) -> list[Record]:
    content = row.get("detection")
    found = content.get("instances") if isinstance(content, dict) else None
    return [instance for instance in found if isinstance(instance, dict)] if isinstance(found, list) else []


def odvg_names(path: str, names_file: str | None = None, report: RowReport | None = None) -> dict[int, str] | None:
    """The names of the detection rows of a file or folder: of `names_file`, else of the label map beside it (see
    :func:`find_label_map`), else what the rows' `category` says, for which all are read. None for grounding rows.

    Raises:
        FileNotFoundError: no `names_file`, or nothing at `path`.
        RowError: a label map that cannot be used, or rows that contradict one another.
    """
    names_file = names_file or find_label_map(path)
    return read_label_map(names_file, report) if names_file else collect_names(json_line_files(path))


# ------------------------------------------------------------------------------------------------------ data sets


def load_odvg(
    path: str,
    image_root: str,
    dataset_name: str | None = None,
    names_file: str | None = None,
    strict: bool | None = None,
    fixes: Mapping[str, str] | None = None,
) -> list[Record]:
    """The records of a file of ODVG rows, or of a folder of them; the names of detection rows are :func:`odvg_names`.

    With a `dataset_name` its metadata gets the names as `thing_classes`. Image ids are the rows' `image_id`, else the
    file names; numbers, where those are not unique.

    Args:
        strict: refuse a file with a row that is not in order; None: as DATASETS.STRICT_ON says.
        fixes: see :class:`OdvgReader`.

    Raises:
        FileNotFoundError: no file, no picture folder, or none of the first pictures in it.
        RowError: no row can be used, or with `strict` one cannot.
    """
    report = RowReport(path)
    names = odvg_names(path, names_file, report)
    reader = OdvgReader(image_root, names, fixes=fixes)
    records = list(read_rows(json_line_files(path), reader, report))
    report.settle(strict)
    check_yield(len(records), report)
    check_pictures(records, image_root)
    detection = reader.names is not None and all("caption" not in record for record in records)
    if not detection and reader.class_names:  # rows of both kinds: captions have no use for the set's class names
        own = {"categories": reader.class_names}
        records = [record if "caption" in record else {**record, **own} for record in records]
    if dataset_name is not None:
        classes = {"thing_classes": reader.class_names} if detection else {}
        kind = "coco" if detection else PHRASES_EVALUATOR
        set_metadata(dataset_name, image_root=image_root, evaluator_type=kind, **classes)
    return with_own_ids(records)


def register_odvg(
    name: str, path: str, image_root: str, names_file: str | None = None, strict: bool | None = None
) -> None:
    """Make ODVG rows known under `name`; nothing is read before it is used.

    Detection rows are scored as COCO's are, captions by the recall of their phrases.

    Raises:
        ValueError: the name is taken.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    DatasetCatalog.register(name, functools.partial(load_odvg, path, image_root, name, names_file, strict))
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type="coco")
