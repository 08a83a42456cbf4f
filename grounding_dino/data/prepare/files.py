"""What the preparation of several data sets shares: archives, json files, and the check that a set loads by name."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def get_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every preparation takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--root", type=Path, help="folder of all data sets; default: $DETECTRON2_DATASETS, else datasets"
    )
    parser.add_argument("--no-check", action="store_true", help="do not load the sets afterwards")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with `root` set; registered names are looked up there from now on, in this process."""
    from grounding_dino.data.datasets.paths import dataset_root  # on use: its package registers sets made by this one

    options = parser.parse_args(arguments)
    if options.root is not None:
        os.environ["DETECTRON2_DATASETS"] = str(options.root.absolute())
    options.root = dataset_root().absolute()
    return options


# ------------------------------------------------------------------------------------------------------ archives


def unpack_all(folder: Path, destination: Path, quiet: bool = False, pattern: str = "*") -> int:
    """Unpack archives in `folder` and below it into `destination`; the number of those unpacked now.

    A file `<archive>.unpacked` remembers what is done, so that an interrupted run goes on where it was. Only plain
    files are taken, and none that would lie outside of `destination`.

    Args:
        pattern: of the names of archives.
    """
    archives = [
        path for path in sorted(folder.rglob(pattern)) if path.name.endswith(ARCHIVES) and not _is_unpacked(path)
    ]
    for archive in archives:
        with _members(archive) as members:
            for name, stream in tqdm(members, desc=f"unpacking {archive.name}", unit=" files", disable=quiet):
                _write_member(destination, name, stream, archive)
        _stamp(archive).write_text(_state(archive), encoding="utf-8")
    return len(archives)


def _stamp(archive: Path) -> Path:
    return archive.with_name(archive.name + ".unpacked")


def _state(archive: Path) -> str:
    return f"{archive.stat().st_size} bytes, changed {archive.stat().st_mtime_ns}"


def _is_unpacked(archive: Path) -> bool:
    return _stamp(archive).is_file() and _stamp(archive).read_text(encoding="utf-8") == _state(archive)


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield ((entry.filename, zipped.open(entry)) for entry in zipped.infolist() if not entry.is_dir())
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tarred:
            yield ((entry.name, stream) for entry in tarred if entry.isfile() and (stream := tarred.extractfile(entry)))
    else:
        raise ValueError(f"{archive} is neither a zip nor a tar file; download it again")


def _write_member(destination: Path, name: str, stream: IO[bytes], archive: Path) -> None:
    path = (destination / name).resolve()
    if not path.is_relative_to(destination.resolve()):
        raise ValueError(f"{archive} would write {name!r} outside of {destination}; it is no archive of this data set")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with stream, open(partial, "wb") as file:
        shutil.copyfileobj(stream, file)
    os.replace(partial, path)


# --------------------------------------------------------------------------------------------------- json, check


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write compact json under another name, and move it when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, separators=(",", ":"))
    os.replace(partial, path)


def check_sets(names: Sequence[str]) -> int:
    """Load registered sets and print a line on each; the number of those that cannot be loaded."""
    import grounding_dino.data.datasets  # noqa: F401  registers the names

    from detectron2.data import DatasetCatalog, MetadataCatalog

    failed = 0
    for name in names:
        try:
            records = DatasetCatalog.get(name)
        except (OSError, ValueError, AssertionError) as error:  # Detectron2 asserts that classes are its own
            failed += 1
            print(f"{name}: {error}")
        else:
            metadata = MetadataCatalog.get(name)
            classes = len(metadata.get("stuff_classes") or metadata.thing_classes)
            print(f"{name}: {len(records)} pictures, {_contents(records)}, {classes} classes")
    return failed


def _contents(records: Sequence[dict[str, Any]]) -> str:
    """What is annotated, counted."""
    for key, what in (("annotations", "objects"), ("segments_info", "segments")):
        if key in records[0]:
            return f"{sum(len(record[key]) for record in records)} {what}"
    return f"{len(records)} semantic maps"


def finish(options: argparse.Namespace, names: Sequence[str]) -> int:
    """The end of every preparation: the check, unless it was declined. The exit code, 1 where no set can be loaded."""
    return 0 if options.no_check else int(check_sets(names) == len(names))
