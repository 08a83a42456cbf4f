"""What is done of a run: records of pictures, on disk once they are told of, whatever happens then."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Record = dict[str, Any]

SHARD_PICTURES = 1024  # neighbours whose records share a file, and are held in memory when outputs are written

_PENDING, _LABELLED, _FAILED = range(3)


class Journal:
    """Records by the number of their picture, in append-only files of json lines.

    A record has `number`, and `error` where the picture failed. A file that ends in the middle of a line was being
    written when a run was killed: that line does not count. Of several records of a picture the last one counts.
    """

    def __init__(self, folder: Path, total: int, retry_failed: bool = False) -> None:
        """
        Args:
            total: number of pictures.
            retry_failed: pictures that failed count as pending.

        Raises:
            OSError: it cannot be read.
        """
        self._folder = folder
        self._states = bytearray(total)  # one byte a picture is all that is held of it
        self._whole: set[int] = set()  # files that end with a whole line
        for shard in range(-(-total // SHARD_PICTURES)):
            for record in self._lines(shard):
                self._states[record["number"]] = _FAILED if "error" in record else _LABELLED
        self.retried = self._states.count(_FAILED) if retry_failed else 0
        if retry_failed:
            self._states = self._states.replace(bytes([_FAILED]), bytes([_PENDING]))

    @property
    def labelled(self) -> int:
        """How many pictures were labelled."""
        return self._states.count(_LABELLED)

    @property
    def failed(self) -> int:
        """How many pictures failed."""
        return self._states.count(_FAILED)

    @property
    def is_complete(self) -> bool:
        """Whether every picture has its record."""
        return _PENDING not in self._states

    def has(self, number: int) -> bool:
        """Whether a picture has its record."""
        return self._states[number] != _PENDING

    def add(self, records: Sequence[Record]) -> int:
        """Keep the records of pictures that have none yet; how many. They are on disk when this returns.

        Raises:
            OSError: they cannot be written; what was there before stays.
        """
        fresh = {record["number"]: record for record in records if not self.has(record["number"])}
        by_shard: dict[int, list[Record]] = {}
        for number, record in fresh.items():
            by_shard.setdefault(number // SHARD_PICTURES, []).append(record)
        for shard, its in by_shard.items():
            self._append(shard, b"".join(json.dumps(record).encode() + b"\n" for record in its))
            for record in its:
                self._states[record["number"]] = _FAILED if "error" in record else _LABELLED
        return len(fresh)

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of their numbers."""
        for shard in range(-(-len(self._states) // SHARD_PICTURES)):
            records = {record["number"]: record for record in self._lines(shard)}
            for number in sorted(records):
                yield records[number]

    def _file(self, shard: int) -> Path:
        return self._folder / f"records-{shard:06d}.jsonl"

    def _lines(self, shard: int) -> Iterator[Record]:
        file = self._file(shard)
        if not file.exists():
            return
        with open(file, "rb") as content:
            for line in content:
                record = self._record(line, shard)
                if record is None:
                    logger.warning("%s: a line that was not written whole is left out; its picture comes again", file)
                else:
                    yield record

    def _record(self, line: bytes, shard: int) -> Record | None:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return None
        places = range(shard * SHARD_PICTURES, min((shard + 1) * SHARD_PICTURES, len(self._states)))
        return record if isinstance(record, dict) and record.get("number") in places else None

    def _append(self, shard: int, lines: bytes) -> None:
        file = self._file(shard)
        created = not file.exists()
        if shard not in self._whole and not created:
            _cut_torn_line(file)
        self._whole.discard(shard)
        with open(file, "ab", buffering=0) as output:
            left = memoryview(lines)
            while left:
                left = left[output.write(left) :]
            os.fsync(output.fileno())
        self._whole.add(shard)
        if created:
            sync_folder(self._folder)


def _cut_torn_line(file: Path) -> None:
    """Take away what follows the last line feed."""
    with open(file, "r+b") as content:
        end = content.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            content.seek(start)
            place = content.read(end - start).rfind(b"\n")
            if place >= 0:
                content.truncate(start + place + 1)
                return
            end = start
        content.truncate(0)


def sync_folder(folder: Path) -> None:
    """See that names of files in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse; they write names at once
        logger.debug("the folder %s cannot be synced", folder, exc_info=True)
    finally:
        os.close(handle)


class OutputLock:
    """One run at a time in an output folder: a lock on a file, which the system takes back when its process ends."""

    def __init__(self, file: Path) -> None:
        """
        Raises:
            BlockingIOError: another run has it.
            OSError: the file cannot be written.
        """
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # workers do not inherit it
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._handle, 200).decode(errors="replace").strip()
            os.close(self._handle)
            raise BlockingIOError(
                f"another run is writing to {str(file.parent.parent)!r} ({owner or 'it has just begun'}); wait for its "
                "end, or name another --output"
            ) from None
        except OSError:
            os.close(self._handle)
            raise
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let others in."""
        os.close(self._handle)
