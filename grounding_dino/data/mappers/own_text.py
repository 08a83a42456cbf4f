"""Texts that records bring along: captions with phrases, and referring expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.data.text_sampling import swap_sides

from detectron2.data import transforms as T
from detectron2.structures import BoxMode

Record = dict[str, Any]
Spans = list[list[tuple[int, int]]]


def phrases_of(record: Record) -> Spans:
    """The character spans of each phrase of a caption: without the key `phrases` all of it is one phrase.

    An empty list stays one: nothing that the caption speaks of is in the picture.
    """
    phrases = record.get("phrases")
    if phrases is None:
        return [[(0, len(record["caption"]))]]
    # A phrase is one span or a list of them.
    one = [bool(phrase) and isinstance(phrase[0], int) for phrase in phrases]
    return [[tuple(phrase)] if alone else [tuple(span) for span in phrase] for phrase, alone in zip(phrases, one)]


def caption_as_seen(record: Record, transforms: T.TransformList) -> Record:
    """`caption` and `phrases` as they hold of the transformed picture."""
    nested = phrases_of(record)
    words, spans = mirrored_words(record["caption"], transforms, [span for spans in nested for span in spans])
    moved = iter(spans)
    return {"caption": words, "phrases": [[next(moved) for _ in phrase] for phrase in nested]}


def mirrored_words(
    text: str, transforms: T.TransformList, spans: Sequence[Sequence[int]] = ()
) -> tuple[str, list[tuple[int, int]]]:
    """`text` and its spans as they hold of the transformed picture."""
    flips = [
        sum(isinstance(transform, kind) for transform in flat(transforms)) % 2 == 1
        for kind in (T.HFlipTransform, T.VFlipTransform)
    ]
    return swap_sides(text, spans, horizontal=flips[0], vertical=flips[1])


def flat(transforms: T.TransformList) -> list[T.Transform]:
    """The single transforms, in order, of a list that may hold lists."""
    single: list[T.Transform] = []
    for transform in transforms.transforms:
        single += flat(transform) if isinstance(transform, T.TransformList) else [transform]
    return single


def referred(annotations: Sequence[Record]) -> dict[int, frozenset[tuple[float, ...]]]:
    """The boxes that each expression refers to, as recorded: equal where two refer to the same object."""
    boxes: dict[int, set[tuple[float, ...]]] = {}
    for annotation in annotations:
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        boxes.setdefault(annotation["category_id"], set()).add(tuple(box))
    return {index: frozenset(found) for index, found in boxes.items()}
