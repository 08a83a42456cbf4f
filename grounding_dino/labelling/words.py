"""What to look for in a picture: names or a caption, for all pictures or of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.text.names import names_in

KINDS = ("categories", "caption")  # how a picture's own text is read

Words = dict[str, Any]  # {"categories": [names]}, {"caption": text}, or {} for none


def words_of_text(text: str, kind: str) -> Words:
    """The words of a text file; {} of an empty one."""
    if kind == "caption":
        caption = " ".join(text.split())
        return {"caption": caption} if caption else {}
    names = names_in(text)
    return {"categories": names} if names else {}


def words_of_row(row: dict[str, Any], kind: str) -> Words:
    """The words of a row with the keys `categories` (a list, or a text as :func:`names_in` takes it) or `caption`.

    Raises:
        ValueError: they are neither.
    """
    value = row.get(kind)
    if value is None:
        return {}
    if isinstance(value, str):
        return words_of_text(value, kind)
    if kind == "categories" and isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return {"categories": list(value)} if value else {}
    expected = "a text" if kind == "caption" else "a list of names"
    raise ValueError(f"its {kind} are {str(value)[:80]!r}; give {expected}")


def read_names(path: str) -> list[str]:
    """The names of a file: one a line, or a json list.

    Raises:
        FileNotFoundError, ValueError: no such file, or no name in it.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of categories {path!r}; it has one name a line, or is a json list")
    try:
        text = file.read_text(encoding="utf-8-sig")
        names: Any = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except ValueError as error:
        raise ValueError(f"the file of categories {path!r} cannot be read: {error}") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"the file of categories {path!r} holds something that is no name; give a json list of texts")
    return checked_names([name.strip() for name in names if name.strip()], f"the file of categories {path!r}")


def checked_names(names: Sequence[str], what: str) -> list[str]:
    """
    Raises:
        ValueError: there is none.
    """
    if not names:
        raise ValueError(f"{what} names nothing to look for; give at least one name")
    return list(names)
