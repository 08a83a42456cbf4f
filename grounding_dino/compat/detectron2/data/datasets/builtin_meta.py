"""Names and ids of COCO's categories (Lin et al. 2014), in the order of the panoptic data (Kirillov et al. 2019)."""

from __future__ import annotations

import colorsys
from typing import Any

_THINGS = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch,
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard,
77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors,
88 teddy bear, 89 hair drier, 90 toothbrush
"""

_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood,
119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform,
145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs,
166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other,
180 window-blind, 181 window-other, 184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged,
188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged, 192 mountain-merged,
193 grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged, 197 building-other-merged,
198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""

_GOLDEN_ANGLE = 0.381966  # of the colour circle: neighbours in the list differ most


def _parse(table: str, is_thing: int) -> list[dict[str, Any]]:
    entries = (entry.strip().split(" ", 1) for entry in table.replace("\n", " ").split(","))
    return [{"id": int(number), "name": name, "isthing": is_thing} for number, name in entries]


def _color(index: int) -> list[int]:
    """A colour of our own choosing for the category at `index`: RGB in 0..255."""
    hue, value = (index * _GOLDEN_ANGLE) % 1.0, (1.0, 0.8, 0.6)[index % 3]
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, value)]


COCO_CATEGORIES: list[dict[str, Any]] = [
    {**category, "color": _color(i)} for i, category in enumerate(_parse(_THINGS, 1) + _parse(_STUFF, 0))
]


def _coco_instances_meta() -> dict[str, Any]:
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    return {
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(things)},
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
    }


def _coco_panoptic_separated_meta() -> dict[str, Any]:
    """For semantic labels of their own: stuff classes from 1, with 0 for all things together."""
    stuff = [category for category in COCO_CATEGORIES if not category["isthing"]]
    ids = {category["id"]: i + 1 for i, category in enumerate(stuff)}
    ids[0] = 0
    return {
        "stuff_dataset_id_to_contiguous_id": ids,
        "stuff_classes": ["things", *(category["name"] for category in stuff)],
        "stuff_colors": [[82, 18, 128], *(category["color"] for category in stuff)],
        **_coco_instances_meta(),
    }


def _coco_panoptic_standard_meta() -> dict[str, Any]:
    """For models with one set of classes: things and stuff both numbered over all 133 categories."""
    names = [category["name"] for category in COCO_CATEGORIES]
    colors = [category["color"] for category in COCO_CATEGORIES]
    numbered = list(enumerate(COCO_CATEGORIES))
    return {
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_classes": names,
        "stuff_colors": colors,
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in numbered if c["isthing"]},
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in numbered if not c["isthing"]},
    }


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """The metadata of a kind of data set: "coco", "coco_panoptic_separated" or "coco_panoptic_standard".

    Raises:
        KeyError: another kind.
    """
    builders = {
        "coco": _coco_instances_meta,
        "coco_panoptic_separated": _coco_panoptic_separated_meta,
        "coco_panoptic_standard": _coco_panoptic_standard_meta,
    }
    if dataset_name not in builders:
        raise KeyError(f"no built-in metadata for {dataset_name!r}; there is some for: {', '.join(sorted(builders))}.")
    return builders[dataset_name]()
