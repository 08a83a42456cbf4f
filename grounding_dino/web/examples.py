"""Pictures to choose from on the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from grounding_dino.cli.demo import PICTURE_SUFFIXES
from grounding_dino.model_zoo import example_pictures

# What there is to be found in the project's own.
_TEXTS = {
    "crescent.jpg": "red triangle, purple cross, white ring, orange diamond, orange crescent",
    "rings.jpg": "orange ring, red ring, brown ring, red triangle, black triangle, blue heart",
    "stars.jpg": "blue star, black star, pink star, red cross, purple circle, brown ring",
    "unseen_pairs.jpg": "purple star, red star, orange circle, purple crescent",
}


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture to choose, and what to look for in it."""

    path: Path
    text: str = ""


def find_examples(folder: str | None = None) -> list[Example]:
    """The pictures of a folder, sorted; without one the project's own, with what is in them.

    Raises:
        FileNotFoundError: no such folder.
    """
    if folder and not Path(folder).expanduser().is_dir():
        raise FileNotFoundError(f"there is no folder {folder!r} (--examples)")
    place = Path(folder).expanduser() if folder else example_pictures()
    files = sorted(file for file in place.glob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    return [Example(file, "" if folder else _TEXTS.get(file.name, "")) for file in files]
