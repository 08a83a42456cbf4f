"""Semantic sets: pictures, and maps of their pixels' classes under the same names in another folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def load_semantic(image_root: str, map_root: str, image_ending: str = ".jpg", map_ending: str = ".png") -> list[Record]:
    """Detectron2's records of a semantic set (`file_name`, `sem_seg_file_name`), and `image_id`, the picture's name.

    A picture `a/b.jpg` belongs to the map `a/b.png`. Either without the other is left out, with a warning that counts.

    Args:
        image_ending: how files of pictures end; what is before it names the picture.
        map_ending: how files of maps end.

    Raises:
        FileNotFoundError: a folder is not there, or no picture has a map.
    """
    pictures, maps = _files(image_root, image_ending), _files(map_root, map_ending)
    paired = sorted(pictures.keys() & maps.keys())
    if not paired:
        raise FileNotFoundError(
            f"no picture *{image_ending} in {image_root} ({len(pictures)} there) has a map *{map_ending} of the same "
            f"name in {map_root} ({len(maps)} there); check both folders"
        )
    for found, others, what, root in ((pictures, maps, "pictures", map_root), (maps, pictures, "maps", image_root)):
        single = sorted(found.keys() - others.keys())
        if single:
            logger.warning(
                "left out %d %s without their counterpart in %s (first: %s)", len(single), what, root, found[single[0]]
            )
    return [
        {"file_name": pictures[name], "image_id": os.path.basename(name), "sem_seg_file_name": maps[name]}
        for name in paired
    ]


def _files(root: str, ending: str) -> dict[str, str]:
    """The files below a folder by their relative paths without the ending."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root!r}; check the path")
    return {
        path.relative_to(root).as_posix()[: -len(ending)]: str(path)
        for path in Path(root).rglob(f"*{ending}")
        if path.is_file()
    }
