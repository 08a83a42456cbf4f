"""Annotations of one JSON object a line: reading them, and what happens to a line that cannot be used.

A reader turns a row into a record and raises :class:`RowError` where it cannot; a :class:`RowReport` counts such rows, and
the repairs of others, by kind, each with its first file and line.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CleaningReport

logger = logging.getLogger(__name__)

Record = dict[str, Any]
# (row, report of repairs inside of it) -> record, or RowError. The report may be left out.
RowReader = Callable[[Record, CleaningReport | None], Record]

_SUFFIXES = (".jsonl", ".ndjson", ".json")


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


@dataclass
class RowReport(CleaningReport):
    """What was dropped or repaired in row files: each kind with its count, and its first example's file and line.

    `json_file` is the file or folder as a whole; `place` the "file:line" of the row that is being read.
    """

    place: str = ""

    def at(self, path: str, line: int) -> RowReport:
        """Move to a row; returns itself."""
        self.place = f"{path}:{line}"
        return self

    def note(self, kind: str, example: str) -> None:
        """Count one repair in the row at hand."""
        super().note(kind, ", ".join(part for part in (self.place, example) if part))

    def skip(self, error: RowError) -> None:
        """Count the row at hand as dropped."""
        self.note(f"dropped rows ({error.kind})", error.detail)

    @property
    def skipped(self) -> int:
        """Rows dropped so far."""
        return sum(count for kind, (count, _) in self.findings.items() if kind.startswith("dropped rows "))

    def settle(self, strict: bool) -> None:
        """Warn once, with every kind and its count, or with `strict` refuse.

        Raises:
            RowError: `strict`, and a row was dropped or repaired.
        """
        if not self.findings:
            return
        if strict:
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
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no annotation file {path!r}; check the path")
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


def load_rows(path: str, reader: RowReader, strict: bool = False) -> list[Record]:
    """All records of a row file, or of a folder of them; what was wrong is said in one warning.

    Raises:
        FileNotFoundError: nothing there.
        RowError: `strict` and a row is not in order, or no row can be used; with the first file and line of each kind.
    """
    report = RowReport(path)
    records = list(read_rows(json_line_files(path), reader, report))
    report.settle(strict)
    check_yield(len(records), report)
    return records


def check_yield(count: int, report: RowReport) -> None:
    """Refuse a set that yields nothing.

    Raises:
        RowError: `count` is 0.
    """
    if count == 0:
        reasons = "; ".join(report.sentences()) or "it has no rows"
        raise RowError(f"the data set {report.json_file} yields nothing", reasons)
