"""D3 (described objects): d3_{full,presence,absence} by scenario; with `_inter`, all descriptions for every picture."""

from __future__ import annotations

import functools
from typing import Any

from grounding_dino.data.datasets.described_json import ANNOTATIONS, GROUPS, IMAGES, SOURCE, load_d3
from grounding_dino.data.datasets.paths import require

from detectron2.data import DatasetCatalog, MetadataCatalog

SUBSETS = {"full": "full", "presence": "pres", "absence": "abs"}  # how the published files call them


def register_d3() -> None:
    """Register the three subsets in both settings; files are looked up when they are used."""
    for subset in SUBSETS:
        for all_descriptions in (False, True):
            name = f"d3_{subset}{'_inter' if all_descriptions else ''}"
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, functools.partial(_load, subset, name, all_descriptions))
                MetadataCatalog.get(name).set(evaluator_type="d3")


def _load(subset: str, name: str, all_descriptions: bool) -> list[dict[str, Any]]:
    annotations = require(ANNOTATIONS / f"d3_{SUBSETS[subset]}_annotations.json", SOURCE)
    groups = require(GROUPS, "`python datasets/prepare_d3.py` makes it from D3's pickles")
    images = require(IMAGES, SOURCE)
    return load_d3(str(annotations), str(images), str(groups), name, all_descriptions)
