"""The list of pictures that a run labels, written down once before it begins."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from grounding_dino.labelling.inputs import Listed
from grounding_dino.picture_files import PICTURE_SUFFIXES
from grounding_dino.whole_file import whole_file

Entry = dict[str, Any]

_FILE = "pictures.jsonl"
_LONGEST_PART = 200  # bytes of a part of a path; file systems allow 255, and suffixes follow
_COMMIT_EVERY = 10_000
_BREAKS_LINES = re.compile("[\0-\x1f\x7f\x85\u2028\u2029]")
_FILE_SUFFIXES = (*PICTURE_SUFFIXES, ".txt", ".xml")  # of pictures and labels in formats with a file a picture


@dataclass(frozen=True)
class Plan:
    """The pictures of a run, in a file of one json object a line, read as it is needed.

    An entry has `number` (from 0), `file_name`, `label_name` (a relative path without suffix that no other picture
    has, for files of its own), `source`, `shard_state` (size and time of a shard), perhaps `categories` or `caption`,
    and `error` where it cannot be labelled.

    Attributes:
        total: number of entries.
        repeated: pictures that were listed more than once, and are here once.
        digest: of what was listed, to see whether it has changed since.
    """

    folder: Path
    total: int
    repeated: int
    digest: str

    def __iter__(self) -> Iterator[Entry]:
        with open(self.folder / _FILE, encoding="ascii") as file:
            for line in file:
                yield json.loads(line)


def write_plan(folder: Path, listed: Iterable[Listed]) -> Plan:
    """Write the list of `listed` into `folder`.

    Raises:
        OSError: it cannot be written.
        ValueError: nothing is listed.
    """
    total = repeated = 0
    digest = hashlib.sha256()
    states: dict[str, list[int]] = {}
    with _OnDiskNames(folder / "names.sqlite") as names, whole_file(folder / _FILE) as file:
        for item in listed:
            digest.update(_described(item))
            if item.source and not names.is_new(json.dumps(item.source, sort_keys=True)):
                repeated += 1
                continue
            entry = {"number": total, "file_name": item.file_name, "source": item.source, **item.words}
            if item.error or (reason := _name_fault(item.file_name)):
                entry["error"] = item.error or reason
            else:
                entry["label_name"] = names.fresh(_label_name(item.file_name))
            shard = item.source.get("shard")
            if shard is not None:
                entry["shard_state"] = states.setdefault(shard, file_state(shard))
            file.write(json.dumps(entry) + "\n")  # in ASCII, so that every name of a file survives
            total += 1
        if not total:
            raise ValueError("there is no picture at --input; check the path, and the suffixes of the files in it")
    return Plan(folder, total, repeated, digest.hexdigest())


def digest_of(listed: Iterable[Listed]) -> str:
    """As :class:`Plan` has it."""
    digest = hashlib.sha256()
    for item in listed:
        digest.update(_described(item))
    return digest.hexdigest()


def file_state(path: str) -> list[int]:
    """Size and time of change of a file, by which another one in its place is noticed."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _described(item: Listed) -> bytes:
    return json.dumps([item.file_name, item.source, item.words, item.error], sort_keys=True).encode()


def _name_fault(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is no valid UTF-8, which no label file can hold; rename it"
    return ""


def _label_name(file_name: str) -> str:
    """The name without suffix as a relative path that leads nowhere else, whatever an archive says.

    Lists of names are read by lines, so there is none that breaks one. A folder never has the name that a file beside
    it may get, such as `a.txt`, nor is it called `images`: trainings look for the labels of `images/NAME` below the
    last folder of that name.
    """
    path = PurePosixPath(_BREAKS_LINES.sub("_", file_name)).with_suffix("")
    *folders, name = [part for part in path.parts if part not in ("/", "..")] or ["picture"]
    return "/".join(_shortened(part) for part in [*map(_folder_name, folders), name])


def _folder_name(part: str) -> str:
    is_like_file = os.path.splitext(part)[1].lower() in _FILE_SUFFIXES
    return part.replace(".", "_") if is_like_file else "images_" if part == "images" else part


def _shortened(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= _LONGEST_PART:
        return part
    return encoded[: _LONGEST_PART - 20].decode(errors="ignore") + "-" + hashlib.sha256(encoded).hexdigest()[:16]


class _OnDiskNames(contextlib.AbstractContextManager["_OnDiskNames"]):
    """Which names there have been, on disk: a list may be longer than memory holds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changes = 0
        self._counts: dict[str, int] = {}  # of names that came again: a table's pictures may all be called alike

    def __enter__(self) -> _OnDiskNames:
        self._remove()
        try:
            self._base = sqlite3.connect(self._file)
            self._base.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; "
                "CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise OSError(f"{self._file} cannot be written: {error}") from error
        return self

    def __exit__(self, *error: object) -> None:
        self._base.close()
        self._remove()

    def is_new(self, name: str) -> bool:
        """Whether the name has not been there before; from now on it has."""
        key = hashlib.sha256(name.encode()).digest()[:20]
        try:
            cursor = self._base.execute("INSERT OR IGNORE INTO names VALUES (?)", (key,))
            self._changes += 1
            if self._changes % _COMMIT_EVERY == 0:
                self._base.commit()
        except sqlite3.Error as error:
            raise OSError(f"{self._file} cannot be written: {error}") from error
        return cursor.rowcount == 1

    def fresh(self, name: str) -> str:
        """The name, numbered where it is taken; names that differ in case alone are one to some file systems."""
        key = name.lower()
        numbered, count = name, self._counts.get(key, 1)
        while not self.is_new(f"label {numbered.lower()}"):
            count += 1
            numbered = f"{name}_{count}"
        if count > 1:
            self._counts[key] = count
        return numbered

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._file)
