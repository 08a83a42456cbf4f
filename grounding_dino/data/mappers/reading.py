"""The pixels of a record: from its file, or from bytes that it holds itself, and what happens where they are broken."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

from grounding_dino.data.mappers.own_text import flat

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from PIL import Image, ImageOps
from torch import Tensor

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_PASSED_ON = ("file_name", "image_id", "height", "width", "dataset_name", "expression_ids")
_LABEL_FILES = ("pan_seg_file_name", "sem_seg_file_name")
_FOR_EVALUATORS = (*_LABEL_FILES, "segments_info")


def read_pixels(record: Record, image_format: str) -> np.ndarray:
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


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) as a tensor (C, H, W) of its own."""
    # `ascontiguousarray` would leave a mirrored axis of one pixel its negative stride, which torch refuses
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


class PictureReader:
    """Begins samples: reads pictures, and decides about those that cannot be read.

    In training another picture takes their place. In testing they are replaced by black ones, so that they count as
    missed and the evaluation goes on.

    Attributes:
        num_unreadable: how many there were, in this process.
    """

    def __init__(self, image_format: str, is_train: bool) -> None:
        self.image_format = image_format
        self.is_train = is_train
        self.num_unreadable = 0

    def read(self, record: Record) -> tuple[Record, np.ndarray | None]:
        """What is handed on of a record, and its picture, (H, W, 3) uint8; None: take another record."""
        wanted = _PASSED_ON if self.is_train else (*_PASSED_ON, *_FOR_EVALUATORS)
        sample = {key: record[key] for key in wanted if key in record}
        image = self._attempt(record["file_name"], lambda: self._checked(record, sample))
        if image is None and not self.is_train:
            height, width = _size_of_broken(record)
            sample.update(height=height, width=width)
            image = np.zeros((height, width, 3), dtype=np.uint8)
        return sample, image

    def read_labels(self, path: str, read: Callable[[str], np.ndarray], image: np.ndarray) -> np.ndarray | None:
        """The numbers (H, W) that `read` finds beside the pixels of `image`; None: take another record.

        Raises:
            ValueError: the two are of different sizes.
        """
        labels = self._attempt(path, lambda: read(path))
        if labels is not None and labels.shape != image.shape[:2]:
            raise ValueError(
                f"{path} is {labels.shape[0]} x {labels.shape[1]} (h x w), but the picture that it labels "
                f"{image.shape[0]} x {image.shape[1]}; correct one of the files (or the picture's EXIF orientation)"
            )
        return labels

    def _checked(self, record: Record, sample: Record) -> np.ndarray:
        image = read_pixels(record, self.image_format)
        if self.is_train:
            utils.check_image_size(sample, image)
        else:
            _trust_picture(image, sample)
        return image

    def _attempt(self, path: str, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        try:
            return read()
        except Exception as error:  # decoders raise many types on broken files
            self.num_unreadable += 1
            logger.warning(
                "unreadable picture %s (%s: %s); %s (number %d in this process)",
                path,
                type(error).__name__,
                error,
                "another takes its place" if self.is_train else "it counts as a black one",
                self.num_unreadable,
            )
            return None


def resizable(labels: np.ndarray, largest: int) -> np.ndarray:
    """Labels up to `largest` in a type that transforms take: bytes, which are treated as masks are, or else floats."""
    return labels.astype(np.uint8 if largest <= 255 else np.float64)


def _trust_picture(image: np.ndarray, sample: Record) -> None:
    """In testing, detections are in pixels of the picture as it is, whatever size its record gives."""
    said, found = (sample.get("height"), sample.get("width")), image.shape[:2]
    if said != found and None not in said:
        logger.warning(
            "%s is %d x %d (h x w), but its record says %d x %d: if its boxes are not in its pixels, they "
            "cannot be matched; correct the annotations",
            *(sample.get("file_name"), *found, *said),
        )
    sample["height"], sample["width"] = found


def _size_of_broken(record: Record) -> tuple[int, int]:
    """Height and width as the record says, or as its labels are: evaluators compare the two pixel by pixel."""
    if record.get("height") and record.get("width"):
        return record["height"], record["width"]
    for key in _LABEL_FILES:
        try:
            with Image.open(record[key]) as labels:
                return labels.height, labels.width
        except (KeyError, OSError):
            continue
    return 256, 256


def transformed(
    image: np.ndarray, augmentations: T.Augmentation, labels: np.ndarray | None = None
) -> tuple[T.AugInput, T.TransformList]:
    """A picture (and its label map, as `sem_seg`) after augmentations, and what they were."""
    pixels = T.AugInput(image, sem_seg=labels)
    transforms = augmentations(pixels)
    if labels is not None and labels.dtype != np.uint8:
        pixels.sem_seg = _moved_labels(labels, transforms)
    return pixels, transforms


def _moved_labels(labels: np.ndarray, transforms: T.TransformList) -> np.ndarray:
    """Labels (H, W) that are no bytes; Detectron2 resizes such by up to half a pixel beside their picture."""
    for transform in flat(transforms):
        if isinstance(transform, T.ResizeTransform):
            whole = Image.fromarray(labels.astype(np.int32))
            resized = whole.resize((transform.new_w, transform.new_h), Image.Resampling.NEAREST)
            labels = np.asarray(resized).astype(labels.dtype)
        else:
            labels = transform.apply_segmentation(labels)
    return labels
