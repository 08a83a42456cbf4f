"""Rows of ODVG and GRIT that stay on disk: large files, folders of them, and webdataset tar files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grounding_dino.data.datasets.coco_cleaning import CleaningReport
from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.grit import GritReader
from grounding_dino.data.datasets.odvg import OdvgReader, collect_names, find_label_map, read_label_map
from grounding_dino.data.datasets.rows import TRAINING_ONLY, RowError, check_pictures, parse_row

if TYPE_CHECKING:
    from grounding_dino.data.streaming import LazyRecords

Record = dict[str, Any]

_FIRST_LINES = 20  # in which the format of a file is looked for
_FIRST_LINE = 1 << 20  # bytes that a row has at most there


def is_grit(row: Record) -> bool:
    """Whether a row has GRIT's keys."""
    return "noun_chunks" in row or "ref_exps" in row


class GroundingReader:
    """Reads each row as GRIT's or as ODVG's, by its keys. It can be pickled, and keeps nothing of a row.

    Args:
        image_root, names, fixes: see :class:`OdvgReader`.
        min_score, phrases: see :class:`GritReader`.
    """

    def __init__(
        self,
        image_root: str,
        names: Mapping[int, str] | None = None,
        min_score: float = 0.0,
        phrases: str = "noun_chunks",
        fixes: Mapping[str, str] | None = None,
    ) -> None:
        self.odvg = OdvgReader(image_root, names, fixes=fixes)
        self.grit = GritReader(image_root, min_score, phrases)

    def __call__(self, row: Record, report: CleaningReport | None = None) -> Record:
        """The record of a row; `report` counts what was repaired in it.

        Raises:
            RowError: the row cannot be used.
        """
        return self.grit(row, report) if is_grit(row) else self.odvg(row, report)


def first_row(path: str) -> Record:
    """The first row of a known format in a file, among its first lines: those before it may be broken.

    Without one it is the first object that a line holds, and {} where no line holds any.
    """
    first: Record = {}
    with open(path, "rb") as file:
        for _ in range(_FIRST_LINES):
            try:
                row = parse_row(file.readline(_FIRST_LINE))
            except RowError:
                continue
            if is_grit(row) or "detection" in row or "grounding" in row:
                return row
            first = first or row
    return first


def load_shards(
    shards: str,
    image_root: str,
    dataset_name: str,
    names_file: str | None = None,
    fixes: Mapping[str, str] | None = None,
    min_score: float = 0.0,
    phrases: str = "noun_chunks",
    strict: bool | None = None,
) -> LazyRecords:
    """The rows of `shards` (a file, a folder, or a pattern, see `streaming.find_shards`) as records on disk.

    Class names of detection rows are those of a label map, if there is one, else what the rows say themselves; tar
    files need the map.

    Args:
        names_file: label map of detection rows.
        fixes: see :class:`OdvgReader`.
        min_score, phrases: of GRIT's rows, see :class:`GritReader`.
        strict: stop at rows that are not in order; None: as DATASETS.STRICT_ON says.

    Raises:
        FileNotFoundError: no such shards, no picture folder, or none of the first pictures in it.
        ValueError: a shard, the label map or all rows cannot be used, or with `strict` one cannot.
    """
    from grounding_dino.data.streaming import LazyRecords, find_shards  # which imports this package

    files = find_shards(shards)
    packed = files[0].lower().endswith(".tar")
    names = _names(shards, files, packed, names_file)
    reader = GroundingReader("" if packed else image_root, names, min_score, phrases, fixes)
    records = LazyRecords(files, reader, dataset_name, strict)
    if not packed:
        check_pictures(records, image_root)
    classes = {} if names is None else {"thing_classes": reader.odvg.class_names}
    set_metadata(dataset_name, evaluator_type=TRAINING_ONLY, **classes)
    return records


def _names(shards: str, files: list[str], packed: bool, names_file: str | None) -> dict[int, str] | None:
    """Class names; they are looked for only where the first row is one of detection, since that may read all rows."""
    beside = names_file or find_label_map(shards if os.path.exists(shards) else files[0])
    if beside:
        return read_label_map(beside)
    return None if packed or "detection" not in first_row(files[0]) else collect_names(files)
