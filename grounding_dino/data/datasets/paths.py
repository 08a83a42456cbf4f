"""Where data sets lie, and the error for what is not there."""

from __future__ import annotations

import os
from pathlib import Path


def dataset_root() -> Path:
    """The folder below which registered data sets are looked up: `$DETECTRON2_DATASETS`, `./datasets` if it is unset.

    It is read anew with every call, so a program may set the variable after importing this package.
    """
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS") or "datasets"))


def require(path: str | os.PathLike[str], hint: str) -> Path:
    """`path`, if there is a file or folder.

    Args:
        path: absolute, or relative to `dataset_root()`.
        hint: where it comes from, as the end of a sentence: "`python datasets/prepare_x.py` makes it".

    Raises:
        FileNotFoundError: nothing there; the message names the path, `hint` and the variable of the folder.
    """
    found = dataset_root() / path
    if not found.exists():
        raise FileNotFoundError(
            f"there is no {str(found)!r}; {hint} (data sets lie below DETECTRON2_DATASETS, which is "
            f"{os.getenv('DETECTRON2_DATASETS') or 'unset: ./datasets'}; see datasets/README.md)"
        )
    return found
