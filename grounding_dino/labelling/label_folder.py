"""Folders of label files, one a picture: written beside the old ones, and put into their place when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """A folder to write the files and folders `parts` into; at the end they take the place of those in `folder`.

    Whatever else lies in `folder` stays. Interrupted, nothing has changed, and the next one begins anew.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    folder.mkdir(exist_ok=True)
    for part in parts:
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)
        if (partial / part).exists():
            os.replace(partial / part, folder / part)
    partial.rmdir()
