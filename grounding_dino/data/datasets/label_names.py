"""Class names as data sets write them, and as the model is prompted with them.

Names are changed in two steps: the table of the data set corrects what is misspelt or says nothing, and
`prompt_name` takes out what belongs to a file format. The names in the file stay known as `original_names` in the
metadata. Other names can be given to a run by DATASETS.TEXT.<data set>.NAMES_FILE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]

# Data set -> name in its file (stripped) -> corrected name.
NAME_FIXES: dict[str, dict[str, str]] = {
    "objects365_v1": {
        "hamimelon": "hami melon",
        "hotair balloon": "hot air balloon",
        "pine apple": "pineapple",
        "tea pot": "teapot",
    },
    "objects365_v2": {
        "Bakset": "Basket",
        "Ballon": "Balloon",
        "Billards": "Billiards",
        "Buttefly": "Butterfly",
        "Campel": "Camel",
        "Dinning Table": "Dining Table",
        "Extention Cord": "Extension Cord",
        "French": "French horn",  # what version 1 calls it
        "Hamimelon": "Hami melon",
        "Hotair ballon": "Hot air balloon",
        "Meat ball": "Meatball",
        "Moniter/TV": "Monitor/TV",
        "Mushroon": "Mushroom",
        "Noddles": "Noodles",
        "Table Teniis paddle": "Table Tennis paddle",
        "Tape Measur/ Ruler": "Tape Measure/Ruler",
        "Tea pot": "Teapot",
        "Trash bin Can": "Trash bin/Can",
    },
    "lvis_v1": {},
    "openimages_v6": {},
    "v3det": {},
}


def prompt_name(name: str, fixes: Mapping[str, str] | None = None) -> str:
    """The name that stands in prompts: corrected, without what is in parentheses, underscores as spaces.

    So it is done for the published models of GLIP, Grounding DINO and MM-Grounding-DINO, and names that differ in
    their parentheses alone ("bow_(weapon)") become the same prompt. A name of which nothing would be left stays.
    """
    stripped = name.strip()
    name = (fixes or {}).get(stripped, stripped)
    cleaned = " ".join(re.sub(r"\([^()]*\)", " ", name).replace("_", " ").split())
    return cleaned if any(character.isalnum() for character in cleaned) else name


def renamed(categories: Sequence[Record], fixes: Mapping[str, str] | None = None) -> list[Record]:
    """COCO categories under the names that prompts use; `original_name` keeps the file's, where it differs.

    What has no name that is text stays as it is, to be refused by the checks of the file.
    """
    return [
        with_name(category, prompt_name(category["name"], fixes)) if isinstance(category.get("name"), str) else category
        for category in categories
    ]


def with_name(category: Record, name: str) -> Record:
    """A COCO category under another name; `original_name` keeps the one it had."""
    return category if category["name"] == name else {**category, "name": name, "original_name": category["name"]}
