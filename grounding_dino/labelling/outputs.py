"""Label files from a journal: in the order of the list, record by record, whole or not at all."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grounding_dino.data.convert.targets import TARGETS
from grounding_dino.data.datasets.captions import find_phrase
from grounding_dino.data.datasets.rows import RowError
from grounding_dino.labelling.journal import Journal, Record
from grounding_dino.labelling.output_folder import PLACES
from grounding_dino.labelling.plan import Entry, Plan
from grounding_dino.labelling.polygons import polygons_of
from grounding_dino.labelling.voc import write_voc
from grounding_dino.labelling.yolo import write_yolo
from grounding_dino.text.names import normalised_name
from grounding_dino.whole_file import whole_file

from pycocotools import mask as coco_mask
from tqdm import tqdm

logger = logging.getLogger(__name__)


@dataclass
class Vocabulary:
    """The classes of a set of labels: names in a fixed order, and where each stands."""

    names: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Put a name to the end, unless it is there: names that prompts write alike are one class."""
        if normalised_name(name) not in self._places:
            self._places[normalised_name(name)] = len(self.names)
            self.names.append(name)

    def place(self, name: str) -> int:
        """The index of a name."""
        return self._places[normalised_name(name)]


@dataclass
class LabelFiles:
    """Writes the results of a complete run.

    Attributes:
        root: the folder that names of pictures are relative to.
        names: classes of all pictures; None where each has its own, or a caption: then they are collected, in the order
            in which the list comes to them.
        segmentation: how json files hold masks: "rle" or "polygon".
        yolo_pictures: "link", "copy" or "none": what the folder of YOLO has as its pictures.
    """

    folder: Path
    root: str
    plan: Plan
    journal: Journal
    names: Sequence[str] | None
    segmentation: str = "rle"
    yolo_pictures: str = "link"

    def write(self, formats: Sequence[str], progress: bool = False) -> Counter[str]:
        """Write the files of `formats`, and the list of failures; returns the counts of `pictures` and `boxes`.

        Raises:
            OSError: they cannot be written.
        """
        counts = self._write_failures()
        vocabulary = self._vocabulary()
        for name in formats:
            lost: Counter[str] = Counter()
            with tqdm(self._records(vocabulary, name), f"writing {name}", self.journal.labelled, disable=not progress,
                      unit=" pictures") as records:  # fmt: skip
                _WRITERS[name](self, records, vocabulary.names, lost)
            for what, count in lost.items():
                logger.warning("%s: %d %s", name, count, what)
        return counts

    def _pairs(self) -> Iterator[tuple[Entry, Record]]:
        """Every entry with its record, which those have too that were errors from the beginning.

        Raises:
            ValueError: the journal is not of this list.
        """
        for entry, record in zip(self.plan, self.journal, strict=True):
            if entry["number"] != record["number"]:
                raise ValueError(
                    f"{self.folder} has no record of {entry['file_name']!r}: labels would go to other pictures; "
                    "begin anew with --restart"
                )
            yield entry, record

    def _write_failures(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        with whole_file(self.folder / PLACES["failures"]) as file:
            for entry, record in self._pairs():
                if "error" in record:
                    counts["failed"] += 1
                    line = {"file_name": entry["file_name"], **entry["source"], "reason": record["error"]}
                    printable = {key: _printable(value) for key, value in line.items()}
                    file.write(json.dumps(printable, ensure_ascii=False) + "\n")
                else:
                    counts["pictures"] += 1
                    counts["boxes"] += len(record["detections"])
        return counts

    def _vocabulary(self) -> Vocabulary:
        vocabulary = Vocabulary()
        for name in self.names or ():
            vocabulary.add(name)
        if self.names is None:
            for entry, record in self._pairs():
                for name in entry.get("categories", ()) if "error" not in record else ():
                    vocabulary.add(name)
                for detection in record.get("detections", ()):
                    vocabulary.add(detection["label"])
        return vocabulary

    def _records(self, vocabulary: Vocabulary, target: str) -> Iterator[Record]:
        """Records as writers of annotation files take them, see `data.convert.sources`, with `label_name`, `source`."""
        for entry, record in self._pairs():
            if "error" in record:
                continue
            found = record["detections"]
            facts: Record = {
                **{"file_name": entry["file_name"], "image_id": entry["number"] + 1},
                **{key: record[key] for key in ("height", "width")},
                **{key: entry[key] for key in ("label_name", "source", "shard_state")if key in entry},
            }  # fmt: skip
            if target == "odvg" and "caption" in entry:
                yield {**facts, **self._grounded(entry["caption"], found)}
            else:
                places = [vocabulary.place(detection["label"]) for detection in found]
                yield {**facts, "annotations": [self._annotation(d, place) for d, place in zip(found, places)]}

    def _annotation(self, detection: Record, place: int) -> Record:
        x0, y0, x1, y1 = detection["box"]
        annotation = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": place, "iscrowd": 0}
        annotation["score"] = detection["score"]
        if "mask" not in detection:
            return annotation
        annotation["area"] = int(coco_mask.area(detection["mask"]))
        if self.segmentation == "rle":
            return {**annotation, "segmentation": detection["mask"]}
        # a mask without outline is its box: YOLO's trainings take polygons for all objects or for none
        polygons = polygons_of(detection["mask"]) or [[x0, y0, x1, y0, x1, y1, x0, y1]]
        return {**annotation, "segmentation": polygons}

    def _grounded(self, caption: str, found: Sequence[Record]) -> Record:
        """A caption record: phrases by their character spans, and boxes that belong to them."""
        phrases: dict[tuple[tuple[int, int], ...], int] = {}
        annotations = []
        for detection in found:
            spans = spans_in(caption, detection["label"])
            place = phrases.setdefault(tuple(spans), len(phrases))
            annotations.append(self._annotation(detection, place))
        return {"caption": caption, "phrases": [list(spans) for spans in phrases], "annotations": annotations}


def _printable(value: Any) -> Any:
    """A name of a file, which may be no UTF-8, as text that is."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def spans_in(caption: str, phrase: str) -> list[tuple[int, int]]:
    """Where the words of a detection's phrase stand in its caption, neighbours as one span.

    A phrase is decoded from tokens: it has other spaces and cases than the caption, and its words may lie apart. Words
    that are not found are left out; of a phrase without any the whole caption is meant.
    """
    try:
        return find_phrase(phrase, caption)
    except RowError:
        spans: list[tuple[int, int]] = []
    start = 0
    for word in phrase.split():
        place = caption.lower().find(word.lower(), start)
        if place < 0:
            place = caption.lower().find(word.lower())
        if place >= 0 and any(map(str.isalnum, word)):
            spans.append((place, place + len(word)))
            start = place + len(word)
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(set(spans)):
        if merged and not any(map(str.isalnum, caption[merged[-1][1] : begin])):
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged or [(0, len(caption.rstrip(" .")) or len(caption))]


def _write_json(kind: str) -> Callable[[LabelFiles, Any, Sequence[str], Counter[str]], None]:
    def write(files: LabelFiles, records: Any, names: Sequence[str], lost: Counter[str]) -> None:
        TARGETS[kind](str(files.folder / PLACES[kind]), records, names, "auto", lost)

    return write


def _write_yolo(files: LabelFiles, records: Any, names: Sequence[str], lost: Counter[str]) -> None:
    write_yolo(files.folder / PLACES["yolo"], records, names, files.yolo_pictures, lost)


def _write_voc(files: LabelFiles, records: Any, names: Sequence[str], lost: Counter[str]) -> None:
    write_voc(files.folder / PLACES["voc"], records, names, files.root)


_WRITERS: dict[str, Callable[[LabelFiles, Any, Sequence[str], Counter[str]], None]] = {
    "coco": _write_json("coco"),
    "odvg": _write_json("odvg"),
    "yolo": _write_yolo,
    "voc": _write_voc,
}
