"""Whether a data set can be trained on: what its reader repairs, and what is wrong with what is left.

An *error* is something that is lost to training, or stops it: what readers drop, pictures that cannot be read. A
*warning* is something that training copes with, though perhaps not as meant.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.data.build import load_records
from grounding_dino.data.check_text import TextCheck
from grounding_dino.data.datasets.coco_cleaning import BOX_TOLERANCE
from grounding_dino.data.findings import ERROR, WARNING, Findings
from grounding_dino.data.loader import own_random_numbers
from grounding_dino.data.mappers import build_mapper
from grounding_dino.data.mappers.own_text import phrases_of
from grounding_dino.data.mappers.reading import read_pixels
from grounding_dino.data.record_sets import annotations_of, has_object
from grounding_dino.data.sample_drawing import class_names
from grounding_dino.data.segmentation_maps import read_panoptic_map, read_semantic_map
from grounding_dino.data.segmentations import transformed_mask
from grounding_dino.data.text_settings import rename, settings_by_dataset

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode

Record = dict[str, Any]

_LOST = re.compile(r"\b(dropped|left out)\b")  # what readers say of things that they cannot repair


@dataclass
class SetReport:
    """What is known of a data set.

    Attributes:
        facts: by what they are about, in the order in which they are shown.
        records: empty where the set cannot be loaded.
        sizes: the different (height, width) of pictures.
        most_objects: of a picture.
        notes: sentences about how the facts came about.
        numbers: what the facts say, for other programs.
    """

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    records: Sequence[Record] = ()
    sizes: set[tuple[int, int]] = field(default_factory=set)
    most_objects: int = 0
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def check_dataset(cfg: CfgNode, name: str, num_pictures: int | None = 200) -> SetReport:
    """Load a data set as a training would, and look at every record, and at some of the pictures.

    Args:
        num_pictures: how many pictures are decoded, evenly spread; None decodes all.
    """
    report = SetReport(name)
    with _messages_of_readers(report.findings):
        try:
            report.records = load_records([name])
        except (ValueError, OSError) as error:
            report.findings.note(ERROR, "the data set cannot be loaded", str(error))
            return report
    names = _class_names(cfg, name, report.findings)
    check = _RecordCheck(names, TextCheck(cfg, report.findings), report.findings, cfg.MODEL.MASK_ON)
    for record in report.records:
        check.add(record)
    report.facts |= check.facts()
    report.facts |= _check_pictures(cfg, report.records, num_pictures, report.findings)
    report.sizes = {(height, width) for width, height in check.sizes}
    report.most_objects = most = max(check.objects, default=0)
    limits = {"TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}
    if cfg.MODEL.META_ARCHITECTURE != "GLIP":  # which has a place for every cell of its maps
        limits["MODEL.QUERY_SELECTION.NUM_QUERIES"] = cfg.MODEL.QUERY_SELECTION.NUM_QUERIES
    for key, limit in limits.items():
        if most > limit:
            report.findings.note(WARNING, f"a picture has more objects than {key}", f"{most} objects, {limit}")
    return report


def decoded_samples(cfg: CfgNode, report: SetReport, count: int) -> list[Record]:
    """Training samples of records evenly spread over a data set; those that cannot be made become findings."""
    cfg = cfg.clone()
    cfg.merge_from_list(["DATASETS.TRAIN", (report.name,), "DATASETS.WEIGHTS", []])
    with quiet_readers():  # they have been heard when the set was checked
        try:
            mapper = build_mapper(cfg, is_train=True)
        except (ValueError, OSError) as error:
            report.findings.note(ERROR, "no training sample can be made", str(error))
            return []
        samples = []
        for place in _spread(len(report.records), count):
            with own_random_numbers(max(cfg.SEED, 0), place):
                record = report.records[place]
                try:
                    samples.append(mapper(record))
                except Exception as error:  # whatever stands in records that nobody has cleaned
                    report.findings.note(ERROR, "records that are no training sample", f"{_name(record)}: {error}")
    return [sample for sample in samples if sample is not None]


@contextlib.contextmanager
def _messages_of_readers(findings: Findings) -> Iterator[None]:
    """Within it, warnings about data become findings instead of being shown."""
    collector = _Collector(findings)
    loggers = [logging.getLogger(f"grounding_dino.{part}") for part in ("data", "text", "engine", "modeling")]
    loggers.append(logging.getLogger("detectron2.data"))
    before = [(log, log.propagate, log.level) for log in loggers]
    for log in loggers:
        log.addHandler(collector)
        log.propagate = False
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, propagate, level in before:
            log.removeHandler(collector)
            log.propagate = propagate
            log.setLevel(level)


def quiet_readers() -> contextlib.AbstractContextManager[None]:
    """Within it, warnings about data are not shown: for loading what was checked before."""
    return _messages_of_readers(Findings())


class _Collector(logging.Handler):
    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.WARNING)
        self.findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.findings.note(ERROR if _LOST.search(message) else WARNING, message)


def _class_names(cfg: CfgNode, name: str, findings: Findings) -> list[str]:
    """The names of the data set's classes as prompts write them."""
    classes = class_names(name)
    try:
        settings = settings_by_dataset(cfg).get(name)
        return rename(classes, settings.prompt_names, name) if settings else classes
    except (ValueError, OSError) as error:
        findings.note(ERROR, "DATASETS.TEXT cannot be used", str(error))
        return classes


class _RecordCheck:
    """Counts and faults of records, added one by one."""

    def __init__(self, names: Sequence[str], text: TextCheck, findings: Findings, masks_on: bool) -> None:
        self.names, self.text, self.findings, self.masks_on = names, text, findings, masks_on
        self.without_object = 0
        self.objects: list[int] = []
        self.crowds = 0
        self.sizes: list[tuple[int, int]] = []  # width, height
        self.classes: Counter[Any] = Counter()
        self.kinds: Counter[str] = Counter()
        self.image_ids: set[Any] = set()
        self.files: set[str] = set()

    def add(self, record: Record) -> None:
        annotations = annotations_of(record)
        objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        self.objects.append(len(objects))
        self.without_object += not has_object(record)
        self.crowds += len(annotations) - len(objects)
        width, height = record.get("width"), record.get("height")
        if width and height:
            self.sizes.append((width, height))
        num_labels = self._add_text(record)
        seen: set[tuple[Any, ...]] = set()
        for annotation in annotations:
            label = annotation.get("category_id")
            if not isinstance(label, int) or not 0 <= label < num_labels:
                self.findings.note(
                    ERROR, "objects of a class that is not there", f"class {label} of {num_labels}, {_name(record)}"
                )
            if "bbox_mode" not in annotation:  # a segment, whose box is that of its mask
                continue
            if self.masks_on and annotation in objects and not annotation.get("segmentation"):
                what = "objects without a mask (left out of a training with masks)"
                self.findings.note(ERROR, what, _name(record))
            box = self._add_box(annotation, record)
            if (label, box) in seen:
                self.findings.note(
                    WARNING, "objects annotated twice, with one box and class", f"{box}, {_name(record)}"
                )
            seen.add((label, box))

    def _add_text(self, record: Record) -> int:
        """How many labels the annotations may have."""
        if "caption" in record:
            self.kinds["captions"] += 1
            self.text.add_caption(record)
            return len(phrases_of(record))
        if "categories" in record:
            self.kinds["expressions" if record.get("referring") else "own categories"] += 1
            for name in record["categories"]:
                self.text.add_name(name, _name(record))
            return len(record["categories"])
        self.kinds["class names"] += 1
        self.classes.update(annotation.get("category_id") for annotation in annotations_of(record))
        if record.get("image_id") in self.image_ids:
            self.findings.note(ERROR, "pictures with the id of another", f"id {record['image_id']}, {_name(record)}")
        self.image_ids.add(record.get("image_id"))
        if record.get("file_name", "") in self.files:
            self.findings.note(WARNING, "pictures that are listed twice", _name(record))
        self.files.add(record.get("file_name", ""))
        return len(self.names)

    def _add_box(self, annotation: Record, record: Record) -> tuple[float, ...]:
        box = tuple(map(float, BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)))
        example = f"{[round(value, 1) for value in box]}, {_name(record)}"
        if not all(map(math.isfinite, box)) or box[2] <= box[0] or box[3] <= box[1]:
            self.findings.note(ERROR, "boxes without an area", example)
        elif min(box[2] - box[0], box[3] - box[1]) < 1:
            self.findings.note(WARNING, "boxes thinner than a pixel", example)
        width, height = record.get("width"), record.get("height")
        if width and height and max(-box[0], -box[1], box[2] - width, box[3] - height) > BOX_TOLERANCE:
            self.findings.note(WARNING, "boxes that stand out of their picture", example)
        return box

    def facts(self) -> dict[str, Any]:
        objects = np.array(self.objects)
        facts: dict[str, Any] = {
            "pictures (records)": len(objects),
            "pictures without an object": self.without_object,
            "objects": int(objects.sum()),
            "crowd regions": self.crowds,
            "objects a picture, mean": round(float(objects.mean()), 2) if len(objects) else 0.0,
            "objects a picture, most": int(objects.max(initial=0)),
            "text": ", ".join(f"{kind} ({count})" for kind, count in self.kinds.items()),
        }
        if self.without_object == len(objects):
            self.findings.note(ERROR, "no picture has an object", "there is nothing to learn; check the annotations")
        if self.sizes:
            ordered = sorted(self.sizes, key=lambda size: size[0] * size[1])
            for word, size in (
                ("smallest", ordered[0]),
                ("median", ordered[len(ordered) // 2]),
                ("largest", ordered[-1]),
            ):
                facts[f"size, {word}"] = f"{size[0]} x {size[1]}"
        if self.kinds["class names"]:
            # What semantic maps hold is not counted.
            counted = bool(self.classes) or self.without_object > 0
            absent = [name for index, name in enumerate(self.names) if counted and not self.classes[index]]
            facts |= {"categories": len(self.names), "categories without a box": len(absent)}
            if absent:
                self.findings.note(WARNING, "categories without a box", ", ".join(absent[:10]), len(absent))
            facts |= self.text.class_names(self.names)
        return facts | self.text.facts()


def _check_pictures(
    cfg: CfgNode, records: Sequence[Record], num_pictures: int | None, findings: Findings
) -> dict[str, Any]:
    """Decode pictures and hold them against the sizes in their records."""
    places = _spread(len(records), len(records) if num_pictures is None else num_pictures)
    for place in places:
        record = records[place]
        try:
            height, width = read_pixels(record, cfg.INPUT.FORMAT).shape[:2]
        except Exception as error:  # decoders raise many types on broken files
            findings.note(ERROR, "pictures that cannot be read", f"{_name(record)} ({type(error).__name__}: {error})")
            continue
        said = (record.get("width", width), record.get("height", height))
        _check_maps(record, (height, width), cfg.MODEL.MASK_ON, findings)
        if said != (width, height):
            example = f"{_name(record)} is {width} x {height}, its record says {said[0]} x {said[1]}"
            what = "pictures of another size than annotated (training leaves them out, evaluation misses their boxes)"
            findings.note(ERROR, what, example)
    return {"pictures decoded": f"{len(places)} of {len(records)}"}


def _check_maps(record: Record, size: tuple[int, int], masks_on: bool, findings: Findings) -> None:
    """Read the maps of a record, and where masks are trained the segmentations of its objects."""
    readers = {
        "pan_seg_file_name": lambda path: read_panoptic_map(path, [s["id"] for s in record["segments_info"]]),
        "sem_seg_file_name": read_semantic_map,
    }
    for key, read in readers.items():
        try:
            found = read(record[key]).shape if key in record else size
        except (ValueError, OSError) as error:
            findings.note(ERROR, "maps of segments that cannot be used", f"{_name(record)}: {error}")
            continue
        if found != size:
            findings.note(ERROR, "maps of another size than their pictures", f"{_name(record)}: {found}, {size}")
    for place, annotation in enumerate(record.get("annotations", ()) if masks_on else ()):
        try:
            mask = transformed_mask(annotation.get("segmentation") or [], TransformList([]), size, size)
        except ValueError as error:
            findings.note(ERROR, "masks that cannot be used", f"annotation {place} of {_name(record)}: {error}")
            continue
        if annotation.get("segmentation") and not mask.any() and not annotation.get("iscrowd", 0):
            findings.note(WARNING, "masks without a pixel", f"annotation {place} of {_name(record)}")


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` of the numbers below `total`, evenly spread."""
    count = min(total, count)
    return [place * total // count for place in range(count)]


def _name(record: Record) -> str:
    return os.path.basename(record.get("file_name", "a record without file_name"))
