"""Records and what is known of them without reading them: lists in memory, sets on disk, and several joined.

A set of records is a sequence with facts: one array a fact, a *column*. With columns a training can be planned (which
pictures go together, what is drawn how often, how long prompts get) for sets whose records stay on disk.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence
from typing import Any, Protocol, cast, overload

from grounding_dino.data.mappers.own_text import phrases_of

import numpy as np
from detectron2.data import DatasetFromList

Record = dict[str, Any]


class TextKind(enum.IntEnum):
    """Where the text of a record comes from."""

    CLASS_NAMES = 0  # of its data set
    CATEGORIES = 1  # its own
    CAPTION = 2


# Column -> type; one element a record, but `classes` has as many a record as `num_classes` says.
FACTS: dict[str, np.dtype] = {
    "landscape": np.dtype(np.bool_),  # wider than high
    "has_object": np.dtype(np.bool_),  # at least one that is no crowd
    "text": np.dtype(np.uint8),  # a TextKind
    "num_labels": np.dtype(np.int32),  # phrases, own categories, or different classes of objects; 0 without object
    "num_classes": np.dtype(np.int32),  # different classes, crowds included; 0 for records with text of their own
    "classes": np.dtype(np.int32),  # which
}


def annotations_of(record: Record) -> Sequence[Record]:
    """The objects of a record, or the segments of its panoptic map: both have `category_id` and may be `iscrowd`."""
    return record.get("annotations") or record.get("segments_info") or ()


def has_object(record: Record) -> bool:
    """Whether a record has an object or segment that is no crowd; of one with a semantic map alone it is assumed."""
    if "sem_seg_file_name" in record and "annotations" not in record and "segments_info" not in record:
        return True
    return any(not annotation.get("iscrowd", 0) for annotation in annotations_of(record))


class RecordSet(Protocol):
    """A sequence of records with columns of facts."""

    @property
    def in_blocks(self) -> bool:
        """Whether records lie on disk, so that neighbours are read faster than records far from each other."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def column(self, name: str) -> np.ndarray:
        """A column of :data:`FACTS`."""


def as_column(values: array, dtype: np.dtype) -> np.ndarray:
    """An array's memory, which it cannot change the size of any more, as numpy's."""
    return np.frombuffer(values, dtype=dtype) if len(values) else np.zeros(0, dtype=dtype)


class FactsBuilder:
    """Collects the facts of records one by one, in compact arrays."""

    def __init__(self) -> None:
        self._columns = {name: array("i" if dtype.itemsize == 4 else "B") for name, dtype in FACTS.items()}

    def add(self, record: Record) -> None:
        """Append the facts of a record."""
        columns = self._columns
        annotations = annotations_of(record)
        objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        classes: Sequence[int] = ()
        if "caption" in record:
            kind, labels = TextKind.CAPTION, len(phrases_of(record))
        elif "categories" in record:
            kind, labels = TextKind.CATEGORIES, len(record["categories"])
        else:
            kind, labels = TextKind.CLASS_NAMES, len({annotation["category_id"] for annotation in objects})
            classes = sorted({annotation["category_id"] for annotation in annotations})
        columns["landscape"].append(record.get("width", 1) > record.get("height", 1))
        columns["has_object"].append(has_object(record))
        columns["text"].append(kind)
        columns["num_labels"].append(labels if objects else 0)
        columns["num_classes"].append(len(classes))
        columns["classes"].extend(classes)

    def columns(self) -> dict[str, np.ndarray]:
        """All columns so far, which share their memory with this; no more can be added then."""
        return {name: as_column(self._columns[name], dtype) for name, dtype in FACTS.items()}


class ListRecords(Sequence[Record]):
    """Records in memory, kept as bytes that worker processes share, with their facts."""

    in_blocks = False

    def __init__(self, records: Sequence[Record]) -> None:
        facts = FactsBuilder()
        for record in records:
            facts.add(record)
        self._columns = facts.columns()
        self._records = DatasetFromList(list(records), copy=False, serialize=True)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """A copy of the record; what is done to it does not stay."""
        places = range(len(self))[index]
        return self._records[places] if isinstance(places, int) else [self._records[place] for place in places]

    def column(self, name: str) -> np.ndarray:
        """See :class:`RecordSet`."""
        return self._columns[name]


class RecordSets(Sequence[Record]):
    """Several sets as one sequence, each after the one before.

    Args:
        parts: the sets.
        names: what to call each in the log.
    """

    def __init__(self, parts: Sequence[RecordSet], names: Sequence[str] | None = None) -> None:
        self.parts = list(parts)
        self.names = [""] * len(parts) if names is None else list(names)
        self.sizes = [len(part) for part in self.parts]
        self._ends = np.cumsum([0, *self.sizes], dtype=np.int64)

    @classmethod
    def of(cls, records: Sequence[Record] | RecordSet) -> RecordSets:
        """`records` as such, with a list's records kept as bytes."""
        if isinstance(records, RecordSets):
            return records
        if not len(records):
            return cls([])
        return cls([ListRecords(records) if isinstance(records, (list, tuple)) else cast(RecordSet, records)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        places = range(len(self))[index]
        if not isinstance(places, int):
            return [self[place] for place in places]
        part = self.part_of(places)
        return self.parts[part][places - int(self._ends[part])]

    def part_of(self, index: int) -> int:
        """Which part the record belongs to."""
        return int(np.searchsorted(self._ends, index, side="right")) - 1

    def places(self, part: int) -> range:
        """The indices of a part's records."""
        return range(int(self._ends[part]), int(self._ends[part + 1]))

    def column(self, name: str) -> np.ndarray:
        """See :class:`RecordSet`; a new array unless there is one part only."""
        columns = [part.column(name) for part in self.parts]
        if len(columns) == 1:
            return columns[0]
        return np.concatenate(columns) if columns else np.zeros(0, FACTS[name])


def repeat_factors(records: RecordSet, threshold: float, sqrt: bool = True) -> np.ndarray:
    """How often each record of a set is drawn an epoch: the greatest of its classes' max(1, sqrt(threshold / share)).

    As Detectron2's `RepeatFactorTrainingSampler.repeat_factors_from_category_frequency` (LVIS, Gupta et al. 2019,
    section B.2), from facts instead of records. Classes of records with text of their own mean nothing beyond the
    record, so these are drawn once.

    Args:
        threshold: classes in a smaller share of the pictures are repeated.
        sqrt: take the square root, as in the paper.

    Returns:
        (N,) float32.
    """
    counts, classes = records.column("num_classes"), records.column("classes")
    result = np.ones(len(counts), dtype=np.float32)
    if not len(classes):
        return result
    pictures_with = np.bincount(classes)
    ratio = threshold * len(counts) / np.maximum(pictures_with, 1)
    of_class = np.maximum(1.0, np.sqrt(ratio) if sqrt else ratio)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    some = counts > 0
    result[some] = np.maximum.reduceat(of_class[classes], starts[some])
    return result
