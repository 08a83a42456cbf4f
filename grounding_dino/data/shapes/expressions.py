"""Referring expressions: words that name exactly one object of a scene.

Every rule states what would make its words ambiguous (near ties in size or place) and stays silent there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from grounding_dino.data.shapes.scene import Scene, SceneObject

import numpy as np

SIZE_RATIO = 1.25  # "the largest": at least this much larger (in side length) than the next
CLEAR_SIZE_RATIO = 1.6  # "the small", "the large": said without comparison
PLACE_MARGIN = 0.08  # of the picture's side, between the objects that a place word tells apart


@dataclass(frozen=True)
class Expression:
    """A caption that names exactly the object with the given index of a scene."""

    caption: str
    index: int


@dataclass(frozen=True)
class _Item:
    """What words can say of an object: centre in [0, 1] of the picture, y down; size in pixels."""

    index: int
    color: str
    shape: str
    texture: str
    size: float
    x: float
    y: float


_Group = tuple[str, list[_Item]]  # a noun phrase and every object that it fits


def _item(index: int, item: SceneObject, extent: int) -> _Item:
    x, y, width, height = item.box
    return _Item(index, *item.pair, item.texture, item.size, (x + width / 2) / extent, (y + height / 2) / extent)


def _groups(items: Sequence[_Item]) -> list[_Group]:
    """Every noun phrase that fits an object of the scene, with all objects that it fits."""
    nouns: dict[str, list[_Item]] = {}
    for item in items:
        names = (f"{item.color} {item.shape}", item.shape, f"{item.color} shape", "shape")
        for name in names:
            nouns.setdefault(name, []).append(item)
    return list(nouns.items())


def _by_name(groups: list[_Group]) -> Iterator[Expression]:
    for noun, members in groups:
        if len(members) == 1 and noun != "shape":
            yield Expression(f"the {noun}", members[0].index)


def _by_texture(groups: list[_Group]) -> Iterator[Expression]:
    for noun, members in groups:
        for texture in ("striped", "dotted"):
            fitting = [item for item in members if item.texture == texture]
            if len(fitting) == 1:
                yield Expression(f"the {texture} {noun}", fitting[0].index)


def _by_size(groups: list[_Group]) -> Iterator[Expression]:
    for noun, members in groups:
        if len(members) < 2:
            continue
        ranked = sorted(members, key=lambda item: item.size)
        if ranked[1].size >= SIZE_RATIO * ranked[0].size:
            yield Expression(f"the smallest {noun}", ranked[0].index)
        if ranked[-1].size >= SIZE_RATIO * ranked[-2].size:
            yield Expression(f"the largest {noun}", ranked[-1].index)
        if len(members) == 2 and ranked[1].size >= CLEAR_SIZE_RATIO * ranked[0].size:
            yield Expression(f"the small {noun}", ranked[0].index)
            yield Expression(f"the large {noun}", ranked[1].index)


def _by_place(groups: list[_Group]) -> Iterator[Expression]:
    places: tuple[tuple[str, Callable[[_Item], float]], ...] = (
        ("leftmost", lambda item: item.x),
        ("rightmost", lambda item: -item.x),
        ("topmost", lambda item: item.y),
        ("lowest", lambda item: -item.y),
    )
    for noun, members in groups:
        if len(members) < 2:
            continue
        for word, coordinate in places:
            first, second = sorted(members, key=coordinate)[:2]
            if coordinate(second) - coordinate(first) >= PLACE_MARGIN:
                yield Expression(f"the {word} {noun}", first.index)


def _by_relation(groups: list[_Group]) -> Iterator[Expression]:
    """ "the square left of the green star": one square clearly on that side, the others clearly not."""
    relations: tuple[tuple[str, Callable[[_Item, _Item], float]], ...] = (
        ("left of", lambda item, anchor: anchor.x - item.x),
        ("right of", lambda item, anchor: item.x - anchor.x),
        ("above", lambda item, anchor: anchor.y - item.y),
        ("below", lambda item, anchor: item.y - anchor.y),
    )
    anchors = [(noun, members[0]) for noun, members in groups if len(members) == 1]
    for noun, members in groups:
        for anchor_noun, anchor in anchors:
            others = [item for item in members if item.index != anchor.index]
            if noun == anchor_noun or not others:
                continue
            for words, distance in relations:
                offsets = sorted(((distance(item, anchor), item.index) for item in others), reverse=True)
                rest_clear = len(offsets) == 1 or offsets[1][0] <= -PLACE_MARGIN
                if offsets[0][0] >= PLACE_MARGIN and rest_clear:
                    yield Expression(f"the {noun} {words} the {anchor_noun}", offsets[0][1])


_RULES = (_by_name, _by_texture, _by_size, _by_place, _by_relation)


def all_expressions(scene: Scene) -> list[list[Expression]]:
    """Every expression that holds in a scene, one list a rule: name, texture, size, place, relation."""
    items = [_item(index, item, scene.image.shape[0]) for index, item in enumerate(scene.objects)]
    groups = _groups(items)
    return [list(rule(groups)) for rule in _RULES]


def refer(scene: Scene, count: int, rng: np.random.Generator) -> list[Expression]:
    """At most `count` different expressions of a scene, drawn rule by rule so that no kind dominates."""
    kinds = [kind for kind in all_expressions(scene) if kind]
    chosen: list[Expression] = []
    while kinds and len(chosen) < count:
        which = int(rng.integers(len(kinds)))
        chosen.append(kinds[which].pop(int(rng.integers(len(kinds[which])))))
        kinds = [kind for kind in kinds if kind]
    return chosen
