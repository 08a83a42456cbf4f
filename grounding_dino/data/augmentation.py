"""What a configuration does to training pictures: sizes, crops, mirror images, colours.

Everything random is drawn from numpy's global generator, which the data loader seeds for each sample.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

FLIPS = ("horizontal", "vertical", "none")
FLIPS_WITH_TEXT = ("swap_words", "off")
# Shares of red, green and blue in the brightness that an eye sees (ITU-R BT.601).
LUMA = {"RGB": (0.299, 0.587, 0.114), "BGR": (0.114, 0.587, 0.299)}

Augmentations = list[T.Augmentation]


class Policies(NamedTuple):
    """Augmentations of pictures asked for class names, and of pictures with words of their own."""

    class_names: Augmentations
    own_text: Augmentations


class Saturation(T.Augmentation):
    """Mix a picture with its grey image: below 1 paler, above 1 more colourful. Hues stay, since words name them."""

    def __init__(self, least: float, most: float, image_format: str) -> None:
        super().__init__()
        self.least, self.most, self.image_format = least, most, image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A blend of an (H, W, 3) picture at a drawn weight."""
        weight = np.random.uniform(self.least, self.most)
        grey = image.dot(np.asarray(LUMA[self.image_format]))[..., np.newaxis]
        return T.BlendTransform(src_image=grey, src_weight=1 - weight, dst_weight=weight)


class SsdColours(T.Augmentation):
    """SSD's changes of brightness, contrast, saturation and hue, each of half of the pictures (Liu et al. 2016)."""

    BRIGHTNESS = 32.0  # added to or taken from each channel at most
    FACTORS = (0.5, 1.5)  # of contrast and saturation
    HUE = 18.0  # degrees of OpenCV's half circle at most

    def __init__(self, image_format: str) -> None:
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """What is drawn; contrast is changed before or after saturation and hue."""
        brightness, contrast, saturation, hue, contrast_last = np.random.rand(5) < 0.5
        offset = np.random.uniform(-self.BRIGHTNESS, self.BRIGHTNESS) if brightness else 0.0
        factor = np.random.uniform(*self.FACTORS) if contrast else 1.0
        intensity = np.random.uniform(*self.FACTORS) if saturation else 1.0
        shift = np.random.uniform(-self.HUE, self.HUE) if hue else 0.0
        return _ColourTransform(self.image_format, offset, factor, intensity, shift, bool(contrast_last))


class _ColourTransform(T.Transform):
    """Drawn changes of :class:`SsdColours`; places stay."""

    def __init__(
        self, image_format: str, offset: float, contrast: float, saturation: float, hue: float, contrast_last: bool
    ) -> None:
        super().__init__()
        self.image_format, self.contrast_last = image_format, contrast_last
        self.offset, self.contrast, self.saturation, self.hue = offset, contrast, saturation, hue

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to the same."""
        img = _linear(img, 1.0, self.offset)
        if not self.contrast_last:
            img = _linear(img, self.contrast)
        if self.saturation != 1.0 or self.hue:
            hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV if self.image_format == "BGR" else cv2.COLOR_RGB2HSV)
            hsv[..., 1] = _linear(hsv[..., 1], self.saturation)
            hsv[..., 0] = (hsv[..., 0].astype(int) + round(self.hue)) % 180
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR if self.image_format == "BGR" else cv2.COLOR_HSV2RGB)
        return _linear(img, self.contrast) if self.contrast_last else img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """As they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """As it is."""
        return segmentation


def _linear(pixels: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    if factor == 1.0 and offset == 0.0:
        return pixels
    return np.clip(pixels.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


class PadToMultiple(T.Augmentation):
    """Pad right and below with grey, and label maps with `ignore_label`, until both sides are multiples of a number."""

    def __init__(self, divisor: int, ignore_label: int) -> None:
        super().__init__()
        self.divisor, self.ignore_label = divisor, ignore_label

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A padding for the size of `image`."""
        height, width = image.shape[:2]
        below, right = -height % self.divisor, -width % self.divisor
        return T.PadTransform(0, 0, right, below, width, height, pad_value=128, seg_pad_value=self.ignore_label)


def build_semantic_augmentations(cfg: CfgNode, ignore_label: int) -> Augmentations:
    """The policy of INPUT for training on label maps: shorter edges, a crop, colours, flip, padding.

    INPUT.CROP takes its window after resizing, where no class fills more than SINGLE_CATEGORY_MAX_AREA of it if ten
    tries find such a place.

    Raises:
        ValueError: a key of INPUT is out of range, or asks for large-scale jitter, which pads label maps with class 0.
    """
    if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED_ON:
        raise ValueError("INPUT.LARGE_SCALE_JITTER is not for semantic training; use INPUT.CROP")
    augmentations: Augmentations = [_shorter_edge(cfg)]
    if cfg.INPUT.CROP.ENABLED:
        crop, share = cfg.INPUT.CROP, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
        if not 0 < share <= 1:
            raise ValueError(f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {share}; give a share in (0, 1], 1 for no limit")
        augmentations.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, share, ignore_label))
    augmentations += [*_colours(cfg), *_flips(cfg.INPUT.RANDOM_FLIP)]
    if cfg.INPUT.SIZE_DIVISIBILITY > 0:
        augmentations.append(PadToMultiple(cfg.INPUT.SIZE_DIVISIBILITY, ignore_label))
    return augmentations


def build_training_augmentations(cfg: CfgNode, flip: str | None = None) -> Policies:
    """The policies of INPUT for training: sizes (with INPUT.CROP, or INPUT.LARGE_SCALE_JITTER), flip, colours.

    Pictures with words of their own are never cropped: the words may speak of places and of what was cut off.

    Args:
        flip: instead of INPUT.RANDOM_FLIP.

    Raises:
        ValueError: a key of INPUT is out of range; the message names it and what it may be.
    """
    flips = _flips(cfg.INPUT.RANDOM_FLIP if flip is None else flip)
    if cfg.INPUT.FLIP_WITH_TEXT not in FLIPS_WITH_TEXT:
        raise ValueError(f"unknown INPUT.FLIP_WITH_TEXT {cfg.INPUT.FLIP_WITH_TEXT!r}; choose from {FLIPS_WITH_TEXT}")
    flips_of_text = flips if cfg.INPUT.FLIP_WITH_TEXT == "swap_words" else []
    colours = _colours(cfg)
    if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED_ON:
        sizes = _large_scale_jitter(cfg)  # last: padding is neither mirrored nor coloured
        return Policies([*flips, *colours, *sizes.class_names], [*flips_of_text, *colours, *sizes.own_text])
    sizes = _shorter_edges(cfg)
    return Policies([*sizes.class_names, *flips, *colours], [*sizes.own_text, *flips_of_text, *colours])


def _shorter_edge(cfg: CfgNode) -> T.Augmentation:
    return T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sample_style=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )


def _shorter_edges(cfg: CfgNode) -> Policies:
    """Shorter edges of several lengths; with INPUT.CROP DETR's policy, which crops half of the pictures before."""
    resize = _shorter_edge(cfg)
    if not cfg.INPUT.CROP.ENABLED:
        return Policies([resize], [resize])
    sizes = list(cfg.INPUT.CROP.MIN_SIZES)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"INPUT.CROP.MIN_SIZES is {sizes}; list shorter sides in pixels, such as [400, 500, 600]")
    crop = T.AugmentationList(
        [
            T.ResizeShortestEdge(sizes, sample_style="choice"),
            T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
        ]
    )
    return Policies([T.RandomApply(crop, prob=0.5), resize], [resize])


class _ResizeScale(T.ResizeScale):
    """Detectron2's, but a thin picture keeps at least one pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if min(resize.new_h, resize.new_w) > 0:
            return resize
        return T.ResizeTransform(resize.h, resize.w, max(1, resize.new_h), max(1, resize.new_w), resize.interp)


def _large_scale_jitter(cfg: CfgNode) -> Policies:
    """A picture times a factor, cut or padded to a square (Ghiasi et al., Simple Copy-Paste, 2021).

    Pictures with words of their own take no factor above 1, with which there is nothing to cut off.
    """
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    size, least, most = jitter.SIZE, jitter.MIN_SCALE, jitter.MAX_SCALE
    if size < 1:
        raise ValueError(f"INPUT.LARGE_SCALE_JITTER.SIZE is {size}; give the side of a square in pixels")
    if not 0 < least <= most:
        raise ValueError(f"INPUT.LARGE_SCALE_JITTER takes 0 < MIN_SCALE <= MAX_SCALE, but they are {least} and {most}")
    # The padding of masks would otherwise be 255, which counts as inside.
    window = T.FixedSizeCrop((size, size), seg_pad_value=0)
    return Policies(
        [_ResizeScale(least, most, size, size), window],
        [_ResizeScale(min(least, 1.0), min(most, 1.0), size, size), window],
    )


def _flips(flip: str) -> Augmentations:
    if flip not in FLIPS:
        raise ValueError(f"unknown RANDOM_FLIP {flip!r}; choose from {FLIPS}")
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _colours(cfg: CfgNode) -> Augmentations:
    """SSD's policy, and brightness, contrast and saturation of some of the pictures, together."""
    ssd: Augmentations = [SsdColours(cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD_ON else []
    probability, strength = cfg.INPUT.COLOR_JITTER.PROBABILITY, cfg.INPUT.COLOR_JITTER.STRENGTH
    if not 0 <= probability <= 1:
        raise ValueError(f"INPUT.COLOR_JITTER.PROBABILITY is {probability}; give a share in [0, 1]")
    if not 0 <= strength <= 1:
        raise ValueError(f"INPUT.COLOR_JITTER.STRENGTH is {strength}; give a share in [0, 1]")
    if probability == 0:
        return ssd
    limits = (1 - strength, 1 + strength)
    parts = [T.RandomBrightness(*limits), T.RandomContrast(*limits), Saturation(*limits, cfg.INPUT.FORMAT)]
    return [*ssd, T.RandomApply(T.AugmentationList(parts), prob=probability)]
