"""Annotations of one JSON object a line: reading them, and what happens to a line that cannot be used.

A reader turns a row into a record and raises :class:`RowError` where it cannot; a :class:`RowReport` counts such rows,
and the repairs of others, by kind, each with its first file and line.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CleaningReport, refuse_compressed

logger = logging.getLogger(__name__)

Record = dict[str, Any]
# (row, report of repairs inside of it) -> record, or RowError. The report may be left out.
RowReader = Callable[[Record, CleaningReport | None], Record]

TRAINING_ONLY = "none: captions of this kind can be trained on, not scored"  # an evaluator_type that nothing scores
PHRASES_EVALUATOR = "flickr30k"  # the evaluator_type of captions whose phrases all have boxes

_SUFFIXES = (".jsonl", ".ndjson", ".json")
_CHECKED_PICTURES = 20
_strict: contextvars.ContextVar[bool] = contextvars.ContextVar("strict_rows", default=False)


@contextlib.contextmanager
def strict_rows(on: bool) -> Iterator[None]:
    """Within it, data sets that do not say themselves are read strictly, or not: how DATASETS.STRICT_ON gets here
    through Detectron2's catalog, whose functions take no arguments."""
    token = _strict.set(on)
    try:
        yield
    finally:
        _strict.reset(token)


class RowError(ValueError):
    """A row that cannot be used.

    Args:
        kind: what is wrong, in words that hold of every row with this fault: rows are counted by it.
        detail: the value that is wrong in this one.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.kind, self.detail)  # so that it gets out of a worker process whole


class RowLeftOut(RowError):
    """A row that is in order and was not asked for, because of its scores, say: no fault, also where rows are read
    strictly."""


@dataclass
class RowReport(CleaningReport):
    """What was dropped or repaired in row files: each kind with its count, and its first example's file and line.

    `json_file` is the file or folder as a whole; `place` the "file:line" of the row that is being read.
    """

    place: str = ""
    left_out: Counter[str] = field(default_factory=Counter)

    def at(self, path: str, line: int) -> RowReport:
        """Move to a row; returns itself."""
        self.place = f"{path}:{line}"
        return self

    def note(self, kind: str, example: str) -> None:
        """Count one repair in the row at hand."""
        super().note(kind, ", ".join(part for part in (self.place, example) if part))

    def skip(self, error: RowError) -> None:
        """Count the row at hand as dropped, or as left out."""
        if isinstance(error, RowLeftOut):
            self.left_out[error.kind] += 1
            return
        self.note(f"dropped rows ({error.kind})", error.detail)

    @property
    def skipped(self) -> int:
        """Rows dropped so far."""
        return sum(count for kind, (count, _) in self.findings.items() if kind.startswith("dropped rows "))

    def settle(self, strict: bool | None = None) -> None:
        """Warn once, with every kind and its count, or with `strict` refuse (None: as :func:`strict_rows` says).

        Raises:
            RowError: `strict`, and a row was dropped or repaired.
        """
        for kind, count in self.left_out.items():
            logger.info("%s: left out %d rows (%s)", self.json_file, count, kind)
        if not self.findings:
            return
        if _strict.get() if strict is None else strict:
            raise RowError(
                f"{self.json_file} has rows that are not in order, and DATASETS.STRICT_ON (strict) asks to stop then",
                "; ".join(self.sentences()),
            )
        logger.warning("%s: %s", self.json_file, "; ".join(self.sentences()))


def parse_row(line: str | bytes) -> Record:
    """The object that a line holds.

    Raises:
        RowError: no UTF-8, no JSON, or no object.
    """
    try:
        row = json.loads(line.decode("utf-8-sig") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise RowError("the line is not UTF-8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RowError("the line is not JSON", str(error)) from error
    if not isinstance(row, dict):
        raise RowError("the line is no JSON object", f"it is a {type(row).__name__}")
    return row


def read_json_lines(path: str, report: RowReport) -> Iterator[tuple[int, Record]]:
    """The objects of a file with the numbers of their lines, from 1; empty lines are nothing.

    `report` is moved along, and counts the lines that :func:`parse_row` refuses.

    Raises:
        FileNotFoundError: no such file.
        CocoFormatError: it is compressed.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no annotation file {path!r}; check the path")
    refuse_compressed(path)
    with open(path, "rb") as file:  # as bytes, so that only a line feed ends a line, as in editors
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            report.at(path, number)
            try:
                row = parse_row(line)
            except RowError as error:
                report.skip(error)
            else:
                yield number, row


def json_line_files(path: str) -> list[str]:
    """`path` itself where it is a file; of a folder its .jsonl, .ndjson or .json files in the order of their names.

    Only the first of these kinds that is there counts: label maps (.json) may lie beside the rows (.jsonl).

    Raises:
        FileNotFoundError: neither, or a folder without such a file.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no annotation file or folder {path!r}; check the path")
    names = sorted(os.listdir(path))
    for suffix in _SUFFIXES:
        found = [os.path.join(path, name) for name in names if name.lower().endswith(suffix)]
        if found:
            return found
    raise FileNotFoundError(f"the folder {path!r} has no {', '.join(_SUFFIXES)} file; check the path")


def read_rows(files: Sequence[str], reader: RowReader, report: RowReport) -> Iterator[Record]:
    """The records of row files in order; rows that `reader` refuses are counted in `report`.

    Raises:
        FileNotFoundError: no such file.
    """
    for path in files:
        for _, row in read_json_lines(path, report):
            try:
                record = reader(row, report)
            except RowError as error:
                report.skip(error)
            else:
                yield record


def check_yield(count: int, report: RowReport) -> None:
    """Refuse a set that yields nothing.

    Raises:
        RowError: `count` is 0.
    """
    if count == 0:
        left_out = [f"rows left out ({kind}): {number}" for kind, number in report.left_out.items()]
        reasons = "; ".join([*report.sentences(), *left_out]) or "it has no rows"
        raise RowError(f"the data set {report.json_file} yields nothing", reasons)


def check_pictures(records: Sequence[Record], image_root: str) -> None:
    """Refuse a picture folder that does not belong to the rows: it is not there, or none of the first pictures is.

    Not all are looked for: a set may have millions, on a slow disk. One that is missing is named when it is needed.

    Raises:
        FileNotFoundError: see above.
    """
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"there is no picture folder {image_root!r}; check the path")
    first = [record["file_name"] for record in records[:_CHECKED_PICTURES]]
    if not any(os.path.isfile(name) for name in first):
        raise FileNotFoundError(
            f"none of the first {len(first)} pictures is in {image_root!r} ({first[0]!r} for one); check the folder"
        )


def with_own_ids(records: list[Record]) -> list[Record]:
    """The records, numbered from 1 where their image ids are not unique or partly numbers and partly text."""
    ids = [record["image_id"] for record in records]
    if len(set(ids)) == len(ids) and len({type(number) for number in ids}) <= 1:
        return records
    return [{**record, "image_id": place} for place, record in enumerate(records, 1)]
