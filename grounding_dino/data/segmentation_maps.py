"""Pictures whose pixels are numbers: panoptic maps of segment ids, semantic maps of classes."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

NO_SEGMENT = 0  # the id of pixels without a segment in COCO's panoptic format
_BASE = 256


def read_panoptic_map(path: str | os.PathLike[str], segment_ids: Collection[int] | None = None) -> NDArray[np.int64]:
    """The segment id of each pixel (H, W) of a PNG in COCO's panoptic format, R + 256 G + 256^2 B; 0 is no segment.

    Args:
        segment_ids: the ids that the json gives this picture, where they are to be compared.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or is not RGB, or its ids are not those of the json.
    """
    pixels = _read(path)
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"the panoptic map {str(path)!r} is not an RGB picture of 8 bits, whose colours are segment ids; is it a "
            "semantic map?"
        )
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    ids = red + _BASE * green + _BASE**2 * blue
    if segment_ids is not None:
        check_segment_ids(ids, segment_ids, path)
    return ids


def check_segment_ids(
    ids: NDArray[np.int64], segment_ids: Collection[int], path: str | os.PathLike[str], owner: str = "its json"
) -> None:
    """See that the ids of a panoptic map, beside 0, are those that are listed for it.

    Raises:
        ValueError: an id is in one of them alone; the message names it and the file.
    """
    found = {int(number) for number in np.unique(ids)} - {NO_SEGMENT}
    listed = {int(number) for number in segment_ids}
    if found - listed:
        raise ValueError(
            f"{str(path)!r} has pixels of the segment {min(found - listed)}, which {owner} does not list: map and list "
            "do not belong together"
        )
    if listed - found:
        raise ValueError(
            f"{owner} lists the segment {min(listed - found)}, of which {str(path)!r} has no pixel: map and list do "
            "not belong together"
        )


def write_panoptic_map(path: str | os.PathLike[str], ids: NDArray[Any]) -> None:
    """Write segment ids (H, W), from 0 to 256^3 - 1, as a PNG in COCO's panoptic format."""
    parts = [(ids // _BASE**power) % _BASE for power in range(3)]
    Image.fromarray(np.stack(parts, axis=-1).astype(np.uint8)).save(path)


def read_semantic_map(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """The class of each pixel (H, W) of a grey (8 or 16 bits) or palette picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or has several channels.
    """
    pixels = _read(path)
    if pixels.ndim != 2:
        raise ValueError(
            f"the semantic map {str(path)!r} has {pixels.shape[-1]} channels; it needs one, of class numbers"
        )
    return pixels.astype(np.int64)


def _read(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The values of a picture as they are stored: no conversion of modes, which would change numbers."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no segmentation map {str(path)!r}")
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except UnidentifiedImageError:
        raise ValueError(f"{str(path)!r} is not a picture in a known format") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the segmentation map {str(path)!r} cannot be read: {error}") from error
