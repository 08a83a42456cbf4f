"""The pixels of a record: from its file, or from bytes that it holds itself."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from detectron2.data import detection_utils as utils
from PIL import Image, ImageOps


def read_pixels(record: dict[str, Any], image_format: str) -> np.ndarray:
    """The picture of a record, turned upright as its EXIF orientation says: (H, W, 3) uint8 in `image_format`.

    A record with `image_bytes`, an encoded picture from within an archive, is decoded from them; `file_name` is then
    only its name.

    Raises:
        Exception: whatever a decoder raises on a broken file; they raise many types.
    """
    if "image_bytes" not in record:
        return utils.read_image(record["file_name"], format=image_format)
    with Image.open(io.BytesIO(record["image_bytes"])) as picture:
        return utils.convert_PIL_to_numpy(ImageOps.exif_transpose(picture), image_format)
