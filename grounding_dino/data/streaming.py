"""Data sets larger than memory: rows of JSON lines and of webdataset's tar files, read from disk when drawn."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO, overload

from grounding_dino.data.datasets.rows import (
    TRAINING_ONLY,
    RowError,
    RowReader,
    RowReport,
    check_yield,
    json_line_files,
    parse_row,
)
from grounding_dino.data.shard_index import ShardIndex, is_tar, member_at, open_index, with_picture_facts

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_MAX_OPEN = 64  # shards that a process holds open
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardError(RuntimeError):
    """A shard that was in order when the run began cannot be read any more."""


def find_shards(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The files that `shards` means: a file, a folder (its .tar files, else its files of rows, by name), a pattern with
    `*` or with webdataset's `{0000..0127}`, or a list of those.

    Raises:
        FileNotFoundError: nothing there.
    """
    if not isinstance(shards, (str, os.PathLike)):
        return [path for part in shards for path in find_shards(part)]
    text = os.fspath(shards)
    braces = _BRACES.search(text)
    if braces:
        first, last = braces.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        return find_shards([text[: braces.start()] + number + text[braces.end() :] for number in numbers])
    if os.path.isdir(text):
        return sorted(glob.glob(os.path.join(glob.escape(text), "*.tar"))) or json_line_files(text)
    found = [text] if os.path.exists(text) else sorted(glob.glob(text))
    if not found:
        raise FileNotFoundError(f"there is no shard {text!r}; name a file, a folder, or a pattern such as rows-*.jsonl")
    return found


class LazyRecords(Dataset, Sequence[Record]):
    """Records of sharded rows that stay on disk: a sequence whose facts (see `record_sets`) are known without reading.

    Every row is read once, when a shard is met for the first time; where rows lie, and their facts, are kept in the
    cache folder and mapped into memory. Rows that `reader` refuses are left out with one warning that counts them. It
    can be pickled and forked: each process opens files of its own.

    A row of a tar file (`key.json` beside `key.jpg`) gets the name of its picture as `file_name`, and its size where
    the row has none; its record has the encoded picture as `image_bytes`.

    Args:
        shards: see :func:`find_shards`.
        reader: turns a row into a record; its class and settings, as they are pickled, belong to the index.
        dataset_name: goes into each record.
        strict: stop at rows that are not in order; None: as DATASETS.STRICT_ON says.

    Raises:
        FileNotFoundError: nothing at `shards`.
        ValueError: a shard is compressed or no tar file; no row can be used; with `strict`, a row cannot.
    """

    in_blocks = True

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        reader: RowReader,
        dataset_name: str = "",
        strict: bool | None = None,
    ) -> None:
        paths = find_shards(shards)
        self.reader = reader
        self.dataset_name = dataset_name
        self.report = RowReport(dataset_name or paths[0])
        self._indices = _open_indices(paths, reader)
        for index in self._indices:
            _add_findings(self.report, index.report)
        self.report.settle(strict)
        self._ends = np.cumsum([0, *map(len, self._indices)], dtype=np.int64)
        check_yield(int(self._ends[-1]), self.report)
        self._chosen: np.ndarray | None = None  # indices of the rows that count; all without
        self._files = _OpenFiles()
        logger.info("%s: %d records in %d shards", self.report.json_file, len(self), len(paths))

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """
        Raises:
            ShardError: the shard is gone, or is not as it was when its index was made.
        """
        places = range(len(self))[index]
        if not isinstance(places, int):
            return [self[place] for place in places]
        row = places if self._chosen is None else int(self._chosen[places])
        shard = int(np.searchsorted(self._ends, row, side="right")) - 1
        return self._read(self._indices[shard], row - int(self._ends[shard]))

    def column(self, name: str) -> np.ndarray:
        """A fact of every record, see :data:`grounding_dino.data.record_sets.FACTS`."""
        parts = [index.columns[name] for index in self._indices]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self._chosen is None:
            return whole
        if name != "classes":
            return whole[self._chosen]
        counts = np.concatenate([index.columns["num_classes"] for index in self._indices])
        kept = np.zeros(len(counts), dtype=np.bool_)
        kept[self._chosen] = True
        return whole[kept.repeat(counts)]

    def with_objects(self) -> LazyRecords:
        """The records with an object that is no crowd; itself where all have one.

        Raises:
            ValueError: none has.
        """
        has_object = self.column("has_object")
        if has_object.all():
            return self
        if not has_object.any():
            raise ValueError(f"no record of {self.report.json_file} has an object; there is nothing to train on")
        others = LazyRecords.__new__(LazyRecords)
        others.__dict__.update(self.__dict__)
        chosen = np.arange(self._ends[-1], dtype=np.int64) if self._chosen is None else self._chosen
        others._chosen = chosen[has_object]
        return others

    def _read(self, index: ShardIndex, row: int) -> Record:
        start, length, picture = (int(index.columns[name][row]) for name in ("start", "length", "picture"))
        file = self._files.get(index)
        try:
            file.seek(start)
            content = parse_row(file.read(length))
            if not is_tar(index.path):
                record = self.reader(content, None)
            else:
                name, encoded = member_at(file, picture)
                record = self.reader(with_picture_facts(content, name, lambda: encoded), None)
                record = {**record, "file_name": os.path.join(index.path, name), "image_bytes": encoded}
        except (OSError, RowError, tarfile.TarError) as error:
            raise ShardError(
                f"row {row} of {index.path} (at byte {start}) cannot be read any more: {error}; was the file changed "
                "during the run? Start again: its index is then made anew"
            ) from error
        return {**record, "dataset_name": self.dataset_name} if self.dataset_name else record


class _OpenFiles:
    """Shards opened by this process, the least used closed first; nothing of it gets into another process."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return type(self), ()

    def get(self, index: ShardIndex) -> BinaryIO:
        """
        Raises:
            ShardError: the shard is not there, or not as it was when its index was made.
        """
        if self._process != os.getpid():  # forked: the place in a file is shared with the parent
            self.__init__()  # type: ignore[misc]
        file = self._files.pop(index.path, None) or self._open(index)
        self._files[index.path] = file
        if len(self._files) > _MAX_OPEN:
            self._files.popitem(last=False)[1].close()
        return file

    def _open(self, index: ShardIndex) -> BinaryIO:
        try:
            file = open(index.path, "rb")
        except OSError as error:
            raise ShardError(f"the shard {index.path} cannot be opened any more: {error}") from error
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (index.size, index.modified):
            file.close()
            raise ShardError(
                f"the shard {index.path} was changed after the run began; start again: its index is then made anew"
            )
        return file


def _open_indices(paths: Sequence[str], reader: RowReader) -> list[ShardIndex]:
    """The indices of shards, in order. Processes begin at different shards, so that they share the work of making
    them: who comes to a shard later finds its index made."""
    first = len(paths) * comm.get_rank() // comm.get_world_size()
    found = {}
    for number in (*range(first, len(paths)), *range(first)):
        found[number] = open_index(paths[number], reader)
    return [found[number] for number in range(len(paths))]


def _add_findings(report: RowReport, other: RowReport) -> None:
    for kind, (count, example) in other.findings.items():
        before, first = report.findings.get(kind, (0, example))
        report.findings[kind] = (before + count, first)
    report.left_out.update(other.left_out)


def register_stream(
    name: str,
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    reader: RowReader,
    strict: bool | None = None,
    **metadata: Any,
) -> None:
    """Make sharded rows known under `name` for DATASETS.TRAIN, as :class:`LazyRecords`; nothing is read before.

    Args:
        metadata: facts of the set, such as `thing_classes` where records are prompted by class names. Without an
            `evaluator_type` it can be trained on only.

    Raises:
        ValueError: the name is taken.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    DatasetCatalog.register(name, functools.partial(LazyRecords, shards, reader, name, strict))
    MetadataCatalog.get(name).set(**{"evaluator_type": TRAINING_ONLY, **metadata})
