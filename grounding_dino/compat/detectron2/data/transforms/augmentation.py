"""Augmentations: policies that look at an input and choose a deterministic transform for it."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class StandardAugInput:
    """What an augmentation sees and changes: a picture, and optionally its boxes and semantic labels.

    Attributes:
        image: (H, W, C) or (H, W), uint8 in 0..255 or floating point.
        boxes: (N, 4) XYXY in absolute pixels, or None.
        sem_seg: (H, W) integer labels, or None.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply `tfm` to every part, in place of the old values."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: list[Augmentation | Transform]) -> TransformList:
        """Apply augmentations one after another; returns the transforms that were chosen."""
        return AugmentationList(augmentations)(self)


AugInput = StandardAugInput


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"augmentations need a numpy array, but the picture is a {type(image).__name__}.")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"a picture is uint8 or floating point, but this one is {image.dtype}.")
    if image.ndim not in (2, 3):
        raise ValueError(f"a picture has shape (H, W) or (H, W, C), but this one has {image.shape}.")


def _input_names(augmentation: Augmentation) -> tuple[str, ...]:
    """The attributes of the input that `get_transform` asks for, by its parameter names."""
    parameters = list(inspect.signature(augmentation.get_transform).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise TypeError(
            f"{type(augmentation).__name__}.get_transform takes * arguments, so what it needs cannot be read off its "
            "signature: set `input_args` to the names it needs, for example ('image',)."
        )
    if len(parameters) == 1:
        return ("image",)  # a lone argument is the picture, whatever it is called
    return tuple(p.name for p in parameters)


class Augmentation:
    """Base class. A subclass defines `get_transform`, whose parameter names say what it needs to see."""

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Choose a transform after looking at the given parts of the input.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform.")

    def __call__(self, aug_input: Any) -> Transform:
        """Choose a transform for `aug_input`, apply it in place, and return it.

        Raises:
            AttributeError: the input lacks a part that the augmentation needs.
            TypeError: `get_transform` returned something else than a transform.
        """
        if self.input_args is None:
            self.input_args = _input_names(self)
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(f"{type(self).__name__} needs {missing[0]!r}, which its input does not have.")
        tfm = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        if not isinstance(tfm, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform returned a {type(tfm).__name__}, not a Transform.")
        aug_input.transform(tfm)
        return tfm

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: int | None = None) -> Any:
        if high is None:
            low, high = 0.0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        shown = []
        for name, parameter in list(parameters.items())[1:]:
            value = getattr(self, name, parameter.default)
            if value is not parameter.default:
                shown.append(f"{name}={pprint.pformat(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


TransformGen = Augmentation


class _FixedAugmentation(Augmentation):
    """An augmentation that always chooses the same transform."""

    input_args = ()

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)


def _as_augmentation(item: Any) -> Augmentation:
    if isinstance(item, Augmentation):
        return item
    if isinstance(item, Transform):
        return _FixedAugmentation(item)
    raise TypeError(f"expected an Augmentation or a Transform, but got a {type(item).__name__}.")


class AugmentationList(Augmentation):
    """Augmentations applied one after another, each seeing what the one before left."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_as_augmentation(item) for item in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Apply all in place; returns the chosen transforms in order."""
        return TransformList([augmentation(aug_input) for augmentation in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(augmentation) for augmentation in self.augs)}]"

    __str__ = __repr__


def apply_augmentations(augmentations: list[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Augment a picture (an array: the array is returned) or an `AugInput` (which is changed and returned).

    Returns:
        the augmented input and the transforms that were applied.
    """
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        tfms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, tfms
    return inputs, inputs.apply_augmentations(augmentations)


apply_transform_gens = apply_augmentations
