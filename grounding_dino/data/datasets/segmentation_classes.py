"""Classes of segmentation sets, and the metadata that Detectron2's evaluators and drawings look up, made from them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORE_LABEL = 255  # of pixels without a class in semantic maps
_GOLDEN_ANGLE = 0.381966  # of the colour circle: neighbours in a list differ most


@dataclass(frozen=True)
class SegmentationClass:
    """A class of a published list.

    Attributes:
        number: its id in the annotation files.
        is_thing: can be counted; else stuff.
        color: RGB in 0..255.
    """

    number: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]


def spread_color(index: int) -> tuple[int, int, int]:
    """A colour for the class at `index` of a list that is published without colours: RGB in 0..255."""
    hue, value = (index * _GOLDEN_ANGLE) % 1.0, (1.0, 0.8, 0.6)[index % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))
    return red, green, blue


def panoptic_metadata(classes: Sequence[SegmentationClass]) -> dict[str, Any]:
    """Names, colours and numbers where things and stuff are one list of classes, in the order of `classes`.

    Names and colours of all are in both of `thing_*` and `stuff_*`, as in Detectron2's panoptic sets, whose drawing
    looks up things in the former by the same numbers. `stuff_dataset_id_to_contiguous_id` has all classes, since it is
    what semantic evaluation goes by; `thing_dataset_id_to_contiguous_id` the things, under the same numbers.
    """
    return {
        **_named("thing", classes),
        "thing_dataset_id_to_contiguous_id": {c.number: i for i, c in enumerate(classes) if c.is_thing},
        **semantic_metadata(classes),
        "label_divisor": 1000,
    }


def semantic_metadata(classes: Sequence[SegmentationClass]) -> dict[str, Any]:
    """Names, colours and numbers for semantic maps, whose pixels are indices into `classes` or `ignore_label`."""
    numbers = {c.number: i for i, c in enumerate(classes)}
    return {**_named("stuff", classes), "stuff_dataset_id_to_contiguous_id": numbers, "ignore_label": IGNORE_LABEL}


def instance_metadata(classes: Sequence[SegmentationClass]) -> dict[str, Any]:
    """Names, colours and numbers of the things alone, counted from 0 in the order of `classes`."""
    things = [c for c in classes if c.is_thing]
    return {
        **_named("thing", things),
        "thing_dataset_id_to_contiguous_id": {c.number: i for i, c in enumerate(things)},
    }


def _named(kind: str, classes: Sequence[SegmentationClass]) -> dict[str, Any]:
    return {f"{kind}_classes": [c.name for c in classes], f"{kind}_colors": [c.color for c in classes]}
