"""GRIT (Kosmos-2, arXiv:2306.14824): captions from the web whose noun chunks and referring expressions have boxes.

A row has `caption`, `width`, `height`, and in `noun_chunks` and `ref_exps` entries [start, stop, x0, y0, x1, y1,
score]: characters of the caption, corners as shares of width and height, and the score of the detector that found it.
Rows are lines of a .jsonl file, or the .json members beside the pictures in webdataset tar files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from grounding_dino.data.datasets.captions import Region, caption_record, picture_facts
from grounding_dino.data.datasets.coco_cleaning import CleaningReport, is_number
from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.rows import (
    PHRASES_EVALUATOR,
    RowError,
    RowLeftOut,
    RowReport,
    check_pictures,
    check_yield,
    json_line_files,
    read_rows,
    with_own_ids,
)

from detectron2.data import DatasetCatalog, MetadataCatalog

Record = dict[str, Any]

PHRASES = ("noun_chunks", "ref_exps", "both")
Entry = tuple[int, int, tuple[float, float, float, float], float]  # start, stop, corners in [0, 1], score


class GritReader:
    """Turns a row into a caption record. It can be pickled, and keeps nothing of a row.

    Args:
        image_root: the folder of the pictures; a row without `file_name` has the picture `<first 5 of key>/<key>.jpg`,
            where img2dataset's tar files are unpacked to.
        min_score: boxes with a lower score are left out; the published ones begin at 0.65.
        phrases: what counts as a phrase. "noun_chunks": "a wire hanger". "ref_exps": the longer "a wire hanger with
            a paper cover". An expression and its chunk have the same box, and a query can only follow one of them:
            "both" takes the expression there, and the chunks of all other boxes.

    Raises:
        ValueError: another `phrases`, or a score outside of 0 to 1.
    """

    def __init__(self, image_root: str, min_score: float = 0.0, phrases: str = "noun_chunks") -> None:
        if phrases not in PHRASES:
            raise ValueError(f"unknown GRIT phrases {phrases!r}; choose from {PHRASES}")
        if not 0 <= min_score <= 1:
            raise ValueError(f"the least score of GRIT boxes is {min_score}; use 0 to 1")
        self.image_root = image_root
        self.min_score = min_score
        self.phrases = phrases

    def __call__(self, row: Record, report: CleaningReport | None = None) -> Record:
        """The record of a row; `report` counts what was repaired in it.

        Raises:
            RowError: the row cannot be used; it is a RowLeftOut where no box has `min_score`.
        """
        key = row.get("key")
        named = any(isinstance(row.get(name), str) for name in ("file_name", "filename"))
        if isinstance(key, str) and key and not named:
            row = {**row, "file_name": f"{key[:5]}/{key}.jpg"}
        facts = picture_facts(row, self.image_root)
        entries = [entry for entry in self._entries(row, facts) if entry[3] >= self.min_score]
        if not entries:
            raise RowLeftOut(f"no box with a score of {self.min_score}", facts["file_name"])
        width, height = facts["width"], facts["height"]
        regions = [
            Region([(start, stop)], [[x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]])
            for start, stop, (x0, y0, x1, y1), _ in entries
        ]
        return caption_record(facts, row.get("caption"), regions, report)

    def _entries(self, row: Record, facts: Record) -> list[Entry]:
        chunks = _parse(row.get("noun_chunks"), "noun_chunks", facts) if self.phrases != "ref_exps" else []
        expressions = _parse(row.get("ref_exps"), "ref_exps", facts) if self.phrases != "noun_chunks" else []
        longest = _longest_of_each_box(expressions)
        taken = {box for _, _, box, _ in longest}
        return [*longest, *(chunk for chunk in chunks if chunk[2] not in taken)]


def _longest_of_each_box(entries: Iterable[Entry]) -> list[Entry]:
    """Of expressions with the same box the one that says most."""
    best: dict[tuple[float, ...], Entry] = {}
    for entry in entries:
        other = best.get(entry[2])
        if other is None or entry[1] - entry[0] > other[1] - other[0]:
            best[entry[2]] = entry
    return list(best.values())


def _parse(value: object, key: str, facts: Record) -> list[Entry]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(map(_is_entry, value)):
        raise RowError(f"{key!r} is no list of [start, stop, x0, y0, x1, y1, score]", facts["file_name"])
    return [(int(start), int(stop), (x0, y0, x1, y1), score) for start, stop, x0, y0, x1, y1, score in value]


def _is_entry(value: object) -> bool:
    """Seven finite numbers of which the first two are whole, be they written as 3 or 3.0, as in parquet files."""
    return (
        isinstance(value, list)
        and len(value) == 7
        and all(map(is_number, value))
        and value[0] == int(value[0])
        and value[1] == int(value[1])
    )


def load_grit(
    path: str,
    image_root: str,
    dataset_name: str | None = None,
    min_score: float = 0.0,
    phrases: str = "noun_chunks",
    strict: bool | None = None,
) -> list[Record]:
    """The records of a .jsonl file of GRIT rows, or of a folder of them, in memory.

    Args:
        min_score, phrases: see :class:`GritReader`.
        strict: refuse a file with a row that is not in order; None: as DATASETS.STRICT_ON says.

    Raises:
        FileNotFoundError: no file, no picture folder, or none of the first pictures in it.
        RowError: no row can be used, or with `strict` one cannot.
    """
    report = RowReport(path)
    records = list(read_rows(json_line_files(path), GritReader(image_root, min_score, phrases), report))
    report.settle(strict)
    check_yield(len(records), report)
    check_pictures(records, image_root)
    if dataset_name is not None:
        set_metadata(dataset_name, image_root=image_root)
    return with_own_ids(records)


def register_grit(
    name: str,
    path: str,
    image_root: str,
    min_score: float = 0.0,
    phrases: str = "noun_chunks",
    strict: bool | None = None,
) -> None:
    """Make GRIT rows known under `name`; nothing is read before it is used.

    Raises:
        ValueError: the name is taken, or `min_score` or `phrases` is none.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    GritReader(image_root, min_score, phrases)  # refuses wrong parameters here and not in the middle of a start
    load = functools.partial(load_grit, path, image_root, name, min_score, phrases, strict)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type=PHRASES_EVALUATOR)
