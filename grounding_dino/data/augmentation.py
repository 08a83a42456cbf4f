"""What a configuration does to training pictures: sizes, crops, mirror images, colours.

Everything random is drawn from numpy's global generator, which the data loader seeds for each sample.
"""

from __future__ import annotations

from typing import NamedTuple

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


def _shorter_edges(cfg: CfgNode) -> Policies:
    """Shorter edges of several lengths; with INPUT.CROP DETR's policy, which crops half of the pictures before."""
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sample_style=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
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
        [T.ResizeScale(least, most, size, size), window],
        [T.ResizeScale(min(least, 1.0), min(most, 1.0), size, size), window],
    )


def _flips(flip: str) -> Augmentations:
    if flip not in FLIPS:
        raise ValueError(f"unknown RANDOM_FLIP {flip!r}; choose from {FLIPS}")
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _colours(cfg: CfgNode) -> Augmentations:
    """Brightness, contrast and saturation of some of the pictures, together."""
    probability, strength = cfg.INPUT.COLOR_JITTER.PROBABILITY, cfg.INPUT.COLOR_JITTER.STRENGTH
    if not 0 <= probability <= 1:
        raise ValueError(f"INPUT.COLOR_JITTER.PROBABILITY is {probability}; give a share in [0, 1]")
    if not 0 <= strength <= 1:
        raise ValueError(f"INPUT.COLOR_JITTER.STRENGTH is {strength}; give a share in [0, 1]")
    if probability == 0:
        return []
    limits = (1 - strength, 1 + strength)
    parts = [T.RandomBrightness(*limits), T.RandomContrast(*limits), Saturation(*limits, cfg.INPUT.FORMAT)]
    return [T.RandomApply(T.AugmentationList(parts), prob=probability)]
