"""The augmentations: resizing, flipping, cropping and colour.

All draw from numpy's global generator, which the data loader seeds in every worker.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from .augmentation import Augmentation, _as_augmentation
from .transform import BILINEAR, CropTransform, PadTransform, ResizeTransform

CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")
CROP_TRIES = 10
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B in ITU-R BT.601


class RandomApply(Augmentation):
    """Apply an augmentation or transform with probability `prob`, else nothing."""

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"RandomApply needs a probability between 0 and 1, but got {prob}.")
        self.aug = _as_augmentation(tfm_or_aug)
        self.prob = prob

    def __call__(self, aug_input: Any) -> Transform:
        """Toss the coin, apply in place, return what was done."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip horizontally or vertically with probability `prob`."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError(
                f"RandomFlip flips in one direction, but got horizontal={horizontal} and vertical={vertical}; "
                "for both, use two of them."
            )
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """A flip over the size of `image`, or nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(image.shape[1]) if self.horizontal else VFlipTransform(image.shape[0])


class Resize(Augmentation):
    """Resize to a fixed (h, w); one number means a square."""

    def __init__(self, shape: int | Sequence[int], interp: int = BILINEAR) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resize from the size of `image`."""
        return ResizeTransform(image.shape[0], image.shape[1], self.shape[0], self.shape[1], self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize so that the shorter edge has a given length and the longer one is at most `max_size`.

    `sample_style` "range" draws the length between two values, "choice" picks one of several. A drawn length of 0
    leaves the picture as it is.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f"unknown sample_style {sample_style!r}; choose 'range' or 'choice'.")
        lengths = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else tuple(short_edge_length)
        if sample_style == "range" and len(lengths) != 2:
            raise ValueError(f"sample_style 'range' takes two edge lengths (least, most), but got {lengths}.")
        self.short_edge_length, self.max_size = lengths, max_size
        self.sample_style, self.interp = sample_style, interp
        self.is_range = sample_style == "range"

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resize from the size of `image`."""
        h, w = image.shape[:2]
        if self.is_range:
            size = int(np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1))
        else:
            size = int(np.random.choice(self.short_edge_length))
        if size == 0:
            return NoOpTransform()
        new_h, new_w = ResizeShortestEdge.get_output_shape(h, w, size, self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The (h, w) after resizing, rounded to the nearest pixel, and at least one."""
        target = float(short_edge_length)
        scale = target / min(oldh, oldw)
        new_h, new_w = (target, scale * oldw) if oldh < oldw else (scale * oldh, target)
        if max(new_h, new_w) > max_size:
            shrink = float(max_size) / max(new_h, new_w)
            new_h, new_w = new_h * shrink, new_w * shrink
        return max(1, int(new_h + 0.5)), max(1, int(new_w + 0.5))


class ResizeScale(Augmentation):
    """Fit the picture into a target size multiplied by a random scale (the resize half of large-scale jitter)."""

    def __init__(
        self, min_scale: float, max_scale: float, target_height: int, target_width: int, interp: int = BILINEAR
    ) -> None:
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_height, self.target_width = target_height, target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resize that keeps the aspect ratio up to rounding."""
        size = np.asarray(image.shape[:2], dtype=np.float64)
        target = np.array([self.target_height, self.target_width]) * np.random.uniform(self.min_scale, self.max_scale)
        new_h, new_w = np.round(size * np.min(target / size)).astype(int)
        return ResizeTransform(image.shape[0], image.shape[1], int(new_h), int(new_w), self.interp)


class FixedSizeCrop(Augmentation):
    """Crop at a random place where the picture is too large, pad right and below where it is too small."""

    def __init__(
        self, crop_size: Sequence[int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        self.crop_size, self.pad = tuple(crop_size), pad
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        """A crop, followed by a padding unless `pad` is off."""
        h, w = image.shape[:2]
        crop_h, crop_w = min(h, self.crop_size[0]), min(w, self.crop_size[1])
        place = np.random.uniform(0.0, 1.0)
        y0, x0 = int(round((h - crop_h) * place)), int(round((w - crop_w) * place))
        tfms: list[Transform] = [CropTransform(x0, y0, crop_w, crop_h, w, h)]
        if self.pad:
            right, below = self.crop_size[1] - crop_w, self.crop_size[0] - crop_h
            tfms.append(PadTransform(0, 0, right, below, crop_w, crop_h, self.pad_value, self.seg_pad_value))
        return TransformList(tfms)


class RandomCrop(Augmentation):
    """Cut out a random window.

    `crop_type` "relative": `crop_size` (h, w) are shares of the picture; "relative_range": drawn between them and 1;
    "absolute": pixels; "absolute_range": pixels drawn between the two, for h and w apart. Windows never exceed the
    picture.
    """

    def __init__(self, crop_type: str, crop_size: Any) -> None:
        if crop_type not in CROP_TYPES:
            raise ValueError(f"unknown crop_type {crop_type!r}; choose from {CROP_TYPES}.")
        self.crop_type, self.crop_size = crop_type, crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """A crop somewhere in `image`."""
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        y0 = int(np.random.randint(h - crop_h + 1))
        x0 = int(np.random.randint(w - crop_w + 1))
        return CropTransform(x0, y0, crop_w, crop_h, orig_w=w, orig_h=h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the window's (h, w) for a picture of (h, w)."""
        h, w = image_size
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), h), min(int(self.crop_size[1]), w)
        if self.crop_type == "absolute_range":
            least, most = self.crop_size
            crop_h = np.random.randint(min(h, least), min(h, most) + 1)
            crop_w = np.random.randint(min(w, least), min(w, most) + 1)
            return int(crop_h), int(crop_w)
        share = np.asarray(self.crop_size, dtype=np.float64) * np.ones(2)
        if self.crop_type == "relative_range":
            share = share + np.random.rand(2) * (1 - share)
        return int(h * share[0] + 0.5), int(w * share[1] + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """`RandomCrop` that avoids windows where one semantic class fills more than a share (tries 10 times).

    Needs `sem_seg` in the input. `ignored_category` does not count.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Any,
        single_category_max_area: float = 1.0,
        ignored_category: int = None,  # type: ignore[assignment]
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type, self.crop_size = crop_type, crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        """A crop that keeps the limit, or the last one tried."""
        tfm = self.crop_aug.get_transform(image)
        if self.single_category_max_area >= 1.0:
            return tfm
        for _ in range(CROP_TRIES - 1):
            labels, counts = np.unique(tfm.apply_segmentation(sem_seg), return_counts=True)
            if self.ignored_category is not None:
                counts = counts[labels != self.ignored_category]
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
            tfm = self.crop_aug.get_transform(image)
        return tfm


class _RandomBlend(Augmentation):
    """Mix the picture with another one at a random weight; weight 1 leaves it as it is."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self.intensity_min, self.intensity_max = intensity_min, intensity_max

    def _blend(self, other: Any) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=other, src_weight=1 - weight, dst_weight=weight)


class RandomBrightness(_RandomBlend):
    """Mix with black: below 1 darker, above 1 lighter."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """A blend at a drawn weight."""
        return self._blend(0)


class RandomContrast(_RandomBlend):
    """Mix with the mean of the picture: below 1 less contrast, above 1 more."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """A blend at a drawn weight."""
        return self._blend(image.mean())


class RandomSaturation(_RandomBlend):
    """Mix with the grey picture: below 1 paler, above 1 more colourful. Needs RGB order."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """A blend at a drawn weight.

        Raises:
            ValueError: the picture has not three channels.
        """
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"RandomSaturation needs an (H, W, 3) picture in RGB order, but got {image.shape}.")
        return self._blend(image.dot(np.asarray(LUMA_WEIGHTS))[:, :, np.newaxis])
