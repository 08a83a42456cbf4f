"""Which shapes and colours exist, and which pairs of them training never sees.

Every word is one token of bert-base-uncased's vocabulary, so the 80 names of `TRAIN_PAIRS` make 242 tokens and
fit into one prompt of 256.
"""

from __future__ import annotations

from collections.abc import Sequence

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "crescent", "arrow")

# RGB in the middle of what the name covers; the renderer varies it.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 32, 38),
    "orange": (245, 130, 20),
    "yellow": (248, 220, 45),
    "green": (42, 158, 62),
    "blue": (32, 84, 214),
    "purple": (130, 48, 176),
    "pink": (250, 142, 190),
    "brown": (118, 70, 34),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
}

_COLOR_NAMES = tuple(COLORS)


def _held_out_pairs() -> tuple[tuple[str, str], ...]:
    """Two colours a shape and two shapes a colour; 3 is coprime to 10, so `3 i` visits every colour once."""
    count = len(_COLOR_NAMES)
    pairs = [
        (_COLOR_NAMES[(3 * index + offset) % count], shape)
        for index, shape in enumerate(SHAPES)
        for offset in (1, 1 + count // 2)
    ]
    return tuple(sorted(pairs, key=lambda pair: (SHAPES.index(pair[1]), _COLOR_NAMES.index(pair[0]))))


HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = _held_out_pairs()
TRAIN_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (color, shape) for shape in SHAPES for color in _COLOR_NAMES if (color, shape) not in HELD_OUT_PAIRS
)


def pair_name(pair: tuple[str, str]) -> str:
    """The category name of a (colour, shape) pair, as it is prompted: "red circle"."""
    return f"{pair[0]} {pair[1]}"


def category_ids(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Category name -> its id in annotation files, for objects of these pairs."""
    return {pair_name(pair): index + 1 for index, pair in enumerate(pairs)}


# Category name -> id of the stuff classes of panoptic and semantic annotations, in the order of painter.BACKGROUNDS.
STUFF_IDS: dict[str, int] = {"plain background": 101, "graded background": 102, "blotchy background": 103}
