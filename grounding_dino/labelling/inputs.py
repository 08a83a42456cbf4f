"""Pictures to label, listed without being read: folders, lists, tar shards and parquet files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grounding_dino.labelling.words import Words, words_of_row, words_of_text
from grounding_dino.picture_files import PICTURE_SUFFIXES

ROW_SUFFIXES = (".jsonl", ".ndjson")
LIST_SUFFIXES = (".txt", ".lst", ".list")
SHARD_SUFFIXES = (".tar", ".parquet")
_WORDS_SUFFIXES = (".txt", ".json")


@dataclass(frozen=True)
class Listed:
    """A picture in the list, or something that should have been one.

    Attributes:
        file_name: how outputs call it.
        source: where it lies: `path`; `shard` and `start` (of its header, in bytes) in a tar file; `shard` and `row`
            in a parquet file. `shard` is an absolute path.
        words: its own, see :data:`Words`.
        error: why it cannot be labelled, or "".
    """

    file_name: str
    source: dict[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=dict)
    error: str = ""


class PictureInputs:
    """The pictures of `--input`, in an order that is a function of names alone.

    Of a folder these are all pictures and shards below it, by name. A list (.txt, .lst, .list) has a path a line, one
    of rows (.jsonl) a `file_name` each; relative paths start at the list. Names in outputs are relative to `root`.

    Args:
        paths: files, folders and patterns.
        own_words: "categories" or "caption" takes a picture's own words: of rows and columns of that name, and for
            single files, and in tar files, of a text file or json beside the picture; None takes none.
        leave_out: a folder that is not searched: outputs, in which pictures may be, too.

    Raises:
        FileNotFoundError: nothing at one of the paths.
        ValueError: a file that is neither picture nor list nor shard.
    """

    def __init__(self, paths: Sequence[str], own_words: str | None = None, leave_out: str = "") -> None:
        self._left_out = os.path.realpath(leave_out) if leave_out else None
        self._paths = [path for pattern in paths for path in _expanded(pattern)]
        self._own_words = own_words
        folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in self._paths]
        self.root = os.path.commonpath(folders)

    def __iter__(self) -> Iterator[Listed]:
        for path in self._paths:
            if os.path.isdir(path):
                yield from self._folder(path)
            else:
                yield from self._file(path)

    def _file(self, path: str) -> Iterator[Listed]:
        suffix = os.path.splitext(path)[1].lower()
        if suffix in PICTURE_SUFFIXES:
            yield self._picture(path)
        elif suffix in ROW_SUFFIXES:
            yield from self._rows(path)
        elif suffix in LIST_SUFFIXES:
            yield from self._lines(path)
        elif suffix == ".tar":
            yield from self._tar(path)
        else:
            yield from self._parquet(path)

    def _folder(self, top: str) -> Iterator[Listed]:
        """Everything below, folders behind the files of their folder; a folder that links lead to twice comes once."""
        waiting, seen = [top], set[tuple[int, int]]()
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(folder)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                yield Listed(self._named(folder), error=f"the folder cannot be read: {error}")
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders = []
            for entry in entries:
                if entry.is_dir():
                    if os.path.realpath(entry.path) != self._left_out:
                        folders.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in (*PICTURE_SUFFIXES, *SHARD_SUFFIXES):
                    yield from self._file(entry.path)
            waiting += reversed(folders)

    def _named(self, path: str) -> str:
        """The path below the root, with slashes; one from elsewhere stays whole."""
        relative = os.path.relpath(path, self.root)
        return (path if relative.startswith(os.pardir + os.sep) else relative).replace(os.sep, "/")

    def _picture(self, path: str) -> Listed:
        name = self._named(path)
        if self._own_words is None:
            return Listed(name, {"path": path})
        beside = Path(path).with_suffix(".txt")
        try:
            words = words_of_text(beside.read_text(encoding="utf-8-sig"), self._own_words) if beside.is_file() else {}
        except (OSError, ValueError) as error:
            return Listed(name, error=f"its text {beside.name!r} cannot be read: {error}")
        return Listed(name, {"path": path}, words)

    def _lines(self, path: str) -> Iterator[Listed]:
        folder = os.path.dirname(path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if line.strip():
                    yield self._picture(os.path.normpath(os.path.join(folder, line.strip())))

    def _rows(self, path: str) -> Iterator[Listed]:
        from grounding_dino.data.datasets.rows import parse_row

        folder = os.path.dirname(path)
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                name = f"{self._named(path)}:{number}"
                try:
                    row = parse_row(line)
                    picture = row.get("file_name", row.get("filename"))
                    if not isinstance(picture, str) or not picture:
                        raise ValueError("it has no file_name")
                    picture = os.path.normpath(os.path.join(folder, picture))
                    words = words_of_row(row, self._own_words) if self._own_words else {}
                except ValueError as error:
                    yield Listed(name, error=f"the row cannot be used: {error}")
                else:
                    yield Listed(self._named(picture), {"path": picture}, words)

    def _tar(self, path: str) -> Iterator[Listed]:
        """Pictures as webdataset groups them: neighbours that share a key belong together."""
        from grounding_dino.data.datasets.rows import RowReport
        from grounding_dino.data.shard_index import bytes_of, member_key, members

        shard, report = self._named(path), RowReport(path)
        group: list[Listed] = []
        key, words = None, Words()
        try:
            with open(path, "rb") as file:
                for member in members(file, path, report):
                    its, suffix = member_key(member.name)
                    if its != key:
                        yield from _with_words(group, words)
                        key, group, words = its, [], {}
                    if not member.isreg():
                        continue
                    if suffix in PICTURE_SUFFIXES:
                        group.append(Listed(f"{shard}/{member.name}", {"shard": path, "start": member.offset}))
                    elif self._own_words and suffix in _WORDS_SUFFIXES and not words:
                        words = _member_words(bytes_of(file, member), suffix, self._own_words)
        except (OSError, ValueError) as error:
            yield from _with_words(group, words)
            yield Listed(shard, error=f"the shard cannot be read: {error}")
            return
        yield from _with_words(group, words)
        for sentence in report.sentences():
            yield Listed(shard, error=sentence)

    def _parquet(self, path: str) -> Iterator[Listed]:
        from grounding_dino.labelling.parquet import list_rows

        shard, folder = self._named(path), os.path.dirname(path)
        try:
            for number, row in list_rows(path):
                name, own = row.get("file_name") or f"{number:08d}", {}
                try:
                    own = words_of_row(row, self._own_words) if self._own_words else {}
                except ValueError as error:
                    yield Listed(f"{shard}/{name}", error=str(error))
                    continue
                if row["encoded"]:
                    yield Listed(f"{shard}/{name}", {"shard": path, "row": number}, own)
                else:
                    picture = os.path.normpath(os.path.join(folder, name))
                    yield Listed(self._named(picture), {"path": picture}, own)
        except (OSError, ValueError) as error:
            yield Listed(shard, error=f"the shard cannot be read: {error}")


def _with_words(group: list[Listed], words: Words) -> Iterator[Listed]:
    for listed in group:
        error = words.get("error", "")
        yield Listed(listed.file_name, listed.source, {} if error else words, error)


def _member_words(content: bytes, suffix: str, kind: str) -> Words:
    """Of a text or json member; {"error": why} where it cannot be used."""
    from grounding_dino.data.datasets.rows import parse_row

    try:
        text = content.decode("utf-8-sig")
        return words_of_text(text, kind) if suffix == ".txt" else words_of_row(parse_row(text), kind)
    except ValueError as error:
        return {"error": f"its text ({suffix}) cannot be used: {error}"}


def _expanded(pattern: str) -> list[str]:
    """Absolute paths that `pattern` means, each of a kind that can hold pictures."""
    if os.path.exists(pattern):
        found = [pattern]
    elif "{" in pattern and pattern.lower().endswith(SHARD_SUFFIXES):
        from grounding_dino.data.streaming import find_shards

        found = find_shards(pattern)
    else:
        found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise FileNotFoundError(f"there is nothing at --input {pattern!r}; check the path or the pattern")
    for path in found:
        _refuse_unknown(path)
    return [os.path.abspath(path) for path in found]


def _refuse_unknown(path: str) -> None:
    known = (*PICTURE_SUFFIXES, *ROW_SUFFIXES, *LIST_SUFFIXES, *SHARD_SUFFIXES)
    if os.path.isdir(path) or os.path.splitext(path)[1].lower() in known:
        return
    compressed = path.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))
    remedy = "unpack it to a .tar file first" if compressed else f"known are {', '.join(known)} and folders"
    raise ValueError(f"--input {path!r} is no picture, no list and no shard; {remedy}")
