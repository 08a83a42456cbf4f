"""Where the rows of a shard lie, and what is in them: found in one pass, kept in the cache folder, mapped into memory.

A shard is a file of JSON lines, or a tar file as webdataset writes it: pairs `key.json` and `key.jpg` (or .jpeg, .png,
.webp). Tar files are only read from: nothing is extracted, and no name in them is used as a path.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import tarfile
import tempfile
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from grounding_dino import __version__
from grounding_dino.data.datasets.rows import RowError, RowReader, RowReport, parse_row
from grounding_dino.data.record_sets import FACTS, FactsBuilder, as_column
from grounding_dino.ops.loader import cache_root

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

Record = dict[str, Any]

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
PROGRESS_SECONDS = 10.0
_ORIENTATION = 0x0112  # EXIF tag
_FORMAT = 1  # of the index files; another number makes them anew
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
_PLACES: dict[str, np.dtype] = {
    "start": np.dtype(np.int64),  # of the row's JSON in the shard, in bytes
    "length": np.dtype(np.int64),
    "picture": np.dtype(np.int64),  # where the header of the picture's file begins in a tar file, else -1
}
# Widest first, so that each begins where its type may begin in memory.
_COLUMNS = dict(sorted({**_PLACES, **FACTS}.items(), key=lambda column: -column[1].itemsize))


@dataclass(frozen=True)
class ShardIndex:
    """What is known of a shard: its rows in `columns` (see :data:`FACTS`), and what was wrong with others.

    Pickled as the path of its file: another process maps the file itself.
    """

    path: str
    size: int
    modified: int  # st_mtime_ns
    columns: dict[str, np.ndarray]
    report: RowReport
    file: Path

    def __len__(self) -> int:
        return len(self.columns["start"])

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.file, self.path, {"size": self.size, "modified": self.modified}, False)


def is_tar(path: str) -> bool:
    """Whether the shard's name says that it is a tar file."""
    return path.lower().endswith(".tar")


def open_index(path: str, reader: RowReader) -> ShardIndex:
    """The index of a shard: the one in the cache folder if it is whole and about this file, else a new one.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: the shard is compressed or no tar file, so that rows cannot be reached one by one.
        OSError: the shard cannot be read, or the cache folder cannot be written to.
    """
    if path.lower().endswith(_COMPRESSED):
        raise ValueError(
            f"the shard {path!r} is compressed, so that a row is reached only by unpacking all before it; "
            "unpack it (gunzip) and name the .jsonl or .tar file"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no shard {path!r}; check the path")
    file = _index_file(path, reader)
    status = os.stat(path)
    source = {"path": os.path.abspath(path), "size": status.st_size, "modified": status.st_mtime_ns}
    header = {"format": _FORMAT, "version": __version__, **source}
    if file.is_file():
        try:
            return _load(file, path, header)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.info("the index of %s is made anew: %s", path, error)
    columns, report = _build(path, reader, status.st_size)
    _save(file, {**header, "findings": report.findings, "left_out": report.left_out}, columns)
    return _load(file, path, header)


def _index_file(path: str, reader: RowReader) -> Path:
    """One file for a shard and a reader (its class and settings), whatever state the shard is in."""
    name = hashlib.sha256(os.path.abspath(path).encode() + pickle.dumps(reader, protocol=4)).hexdigest()[:24]
    return cache_root() / "indices" / f"{Path(path).stem[:40]}-{name}.index"


# ------------------------------------------------------------------------------------------------- index files


def _save(file: Path, header: Record, columns: dict[str, np.ndarray]) -> None:
    """A line of JSON, then the columns; under another name until it is whole."""
    blocks = [columns[name].view(np.uint8).data for name in _COLUMNS]
    sums = [zlib.crc32(block) for block in blocks]
    lengths = [len(columns[name]) for name in _COLUMNS]
    line = json.dumps({**header, "lengths": lengths, "sums": sums})
    line += " " * (-(len(line) + 1) % 8) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        with os.fdopen(handle, "wb") as output:
            output.write(line.encode())
            output.writelines(blocks)
        os.replace(partial, file)
    except OSError as error:
        raise OSError(
            f"the index of {header['path']} cannot be written to {file.parent}: {error}; "
            "set GROUNDING_DINO_CACHE to a folder with room"
        ) from error


def _load(file: Path, path: str, expected: Record, check_sums: bool = True) -> ShardIndex:
    """The index in a file, its columns mapped into memory.

    Raises:
        ValueError: the index is not about this shard as it is now, or is damaged.
    """
    with open(file, "rb") as content:
        line = content.readline(1 << 24)
    header = json.loads(line)
    if any(header.get(key) != value for key, value in expected.items()):
        raise ValueError("the shard, or how it is read, has changed since")
    lengths, sums = header["lengths"], header["sums"]
    sizes = [length * dtype.itemsize for length, dtype in zip(lengths, _COLUMNS.values(), strict=True)]
    if file.stat().st_size != len(line) + sum(sizes):
        raise ValueError("it is cut off")
    data = np.memmap(file, dtype=np.uint8, mode="r")
    columns, begin = {}, len(line)
    for (name, dtype), size, checksum in zip(_COLUMNS.items(), sizes, sums, strict=True):
        block = data[begin : begin + size]
        if check_sums and zlib.crc32(block.data) != checksum:
            raise ValueError(f"its column {name!r} is damaged")
        columns[name] = block.view(dtype)
        begin += size
    findings = {kind: (int(count), str(first)) for kind, (count, first) in header["findings"].items()}
    report = RowReport(path, findings, left_out=Counter(header["left_out"]))
    return ShardIndex(path, expected["size"], expected["modified"], columns, report, file)


# --------------------------------------------------------------------------------------------- reading a shard


@dataclass(frozen=True)
class _Row:
    start: int
    length: int
    picture: int
    content: Record


def _build(path: str, reader: RowReader, size: int) -> tuple[dict[str, np.ndarray], RowReport]:
    """Read every row through `reader`; those that it refuses are counted and left out."""
    report, facts = RowReport(path), FactsBuilder()
    places = {name: array("q") for name in _PLACES}
    reported = time.monotonic()
    for row in (_tar_rows if is_tar(path) else _json_rows)(path, report):
        try:
            record = reader(row.content, report)
        except RowError as error:
            report.skip(error)
            continue
        except Exception as error:
            raise RuntimeError(f"{report.place}: {type(reader).__name__} failed on this row: {error!r}") from error
        facts.add(record)
        for name, values in places.items():
            values.append(getattr(row, name))
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            done = 100 * row.start / max(size, 1)
            logger.info("indexing %s: %d rows, %.0f %%", path, len(places["start"]), done)
    return {**{name: as_column(places[name], dtype) for name, dtype in _PLACES.items()}, **facts.columns()}, report


def _json_rows(path: str, report: RowReport) -> Iterator[_Row]:
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                report.at(path, number)
                try:
                    yield _Row(start, len(line), -1, parse_row(line))
                except RowError as error:
                    report.skip(error)
            start += len(line)


def _tar_rows(path: str, report: RowReport) -> Iterator[_Row]:
    """The pairs of a tar file, in the order in which they become complete."""
    waiting: dict[str, dict[str, tarfile.TarInfo]] = {}
    with open(path, "rb") as file:
        for member in members(file, path, report):
            key, suffix = member_key(member.name)
            kind = "picture" if suffix in PICTURES else "row" if suffix == ".json" else None
            if kind is None or not member.isreg():
                continue
            report.place = f"{path}:{member.name}"
            pair = waiting.setdefault(key, {})
            if kind in pair:
                report.skip(RowError(f"a second {kind} of the same key"))
                continue
            pair[kind] = member
            if len(pair) == 2:
                del waiting[key]
                row = _tar_row(file, pair["row"], pair["picture"], report)
                if row is not None:
                    yield row
    for pair in waiting.values():
        for kind, member in pair.items():
            report.place = f"{path}:{member.name}"
            report.skip(RowError(f"a {kind} without its {'picture' if kind == 'row' else 'row'}"))


def member_key(name: str) -> tuple[str, str]:
    """Key and suffix of a member, as webdataset splits them: at the first period of the last part of its name."""
    folder, slash, last = name.rpartition("/")
    stem, period, suffix = last.partition(".")
    return folder + slash + stem, (period + suffix).lower()


def members(file: BinaryIO, path: str, report: RowReport) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file; where it is broken, that is counted and nothing more comes."""
    size = os.fstat(file.fileno()).st_size
    try:
        archive = tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise ValueError(f"the shard {path!r} is no (uncompressed) tar file: {error}") from error
    with archive:
        while True:
            report.place = path
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, ValueError) as error:
                report.skip(RowError("the tar file is damaged or cut off", str(error)))
                return
            if member is None:
                break
            archive.members = []  # type: ignore[attr-defined]  # which would keep them all
            if member.offset_data + member.size > size:
                report.place = f"{path}:{member.name}"
                report.skip(RowError("the tar file is cut off inside of a member"))
                return
            yield member
        # tarfile takes a header that it cannot read for the end.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            report.skip(RowError("the tar file is damaged or cut off", f"at byte {archive.offset} of {size}"))


def _tar_row(file: BinaryIO, row: tarfile.TarInfo, picture: tarfile.TarInfo, report: RowReport) -> _Row | None:
    position = file.tell()
    try:
        file.seek(row.offset_data)
        content = parse_row(file.read(row.size))
        content = with_picture_facts(content, picture.name, lambda: bytes_of(file, picture))
        return _Row(row.offset_data, row.size, picture.offset, content)
    except RowError as error:
        report.skip(error)
        return None
    finally:
        file.seek(position)


def bytes_of(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The content of a member; shorter than its size where the file is cut off."""
    file.seek(member.offset_data)
    return file.read(member.size)


def member_at(file: BinaryIO, start: int) -> tuple[str, bytes]:
    """Name and content of the member whose header begins at `start`.

    Raises:
        tarfile.TarError: there is none, or it is cut off.
    """
    file.seek(start)
    member = tarfile.open(fileobj=file, mode="r:").next()
    content = b"" if member is None else bytes_of(file, member)
    if member is None or len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return member.name, content


def with_picture_facts(row: Record, name: str, picture: Callable[[], bytes]) -> Record:
    """A row of a tar file as one of a file of JSON lines: with the picture's name, and its size if it has none.

    Raises:
        RowError: it has no size, and the picture is unreadable.
    """
    row = {**row, "file_name": name}
    if row.get("width") is None or row.get("height") is None:
        try:
            with Image.open(io.BytesIO(picture())) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION, 1) >= 5  # by a quarter, as readers do
        except Exception as error:  # decoders raise many types on broken files
            raise RowError("a picture that is not readable, whose row gives no size", f"{name}: {error}") from error
        row["width"], row["height"] = (height, width) if turned else (width, height)
    return row
