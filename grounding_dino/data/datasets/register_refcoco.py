"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO in MDETR's layout: `coco/mdetr_annotations/finetune_*.json`.

`*_train` gives one caption a record, whose positive words are those that the file marks (`tokens_positive`: the head
noun in MDETR's files), as MDETR and mmdet train. `*_train_grouped` gives one record a picture with its expressions as
categories, of which a training prompt draws some. The other splits are grouped too, so that the backbone runs once a
picture: TEST.DESCRIPTIONS_PER_PROMPT says how many are asked for at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.grefcoco_json import ANNOTATIONS
from grounding_dino.data.datasets.mdetr import load_mdetr
from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.refexp_json import load_refexp
from grounding_dino.data.datasets.rows import TRAINING_ONLY

from detectron2.data import DatasetCatalog, MetadataCatalog

Record = dict[str, Any]

IMAGES = Path("coco/train2014")
_UNC = ("train", "val", "testA", "testB")
# Name of a set -> how its files are called, and its splits.
FAMILIES = {
    "refcoco": ("refcoco", _UNC),
    "refcocoplus": ("refcoco+", _UNC),
    "refcocog": ("refcocog", ("train", "val", "test")),
    "grefcoco": ("grefcoco", _UNC),
}
_IMAGES_SOURCE = "the pictures are train2014 of https://cocodataset.org/#download"
_SOURCE = "MDETR's annotations hold it: https://zenodo.org/records/4729015, mdetr_annotations.tar.gz"
_GENERALIZED_SOURCE = "`python datasets/prepare_grefcoco.py` makes it from gRefCOCO's files"


def register_refcoco() -> None:
    """Register all splits of the four; files are looked up when they are used."""
    for family, (_, splits) in FAMILIES.items():
        for split in splits:
            name = f"{family}_{split}"
            if split == "train":
                _register(name, TRAINING_ONLY, functools.partial(load_caption_split, family, split, name))
                name += "_grouped"
            kind = "grefexp" if family == "grefcoco" else "refexp"
            _register(name, kind, functools.partial(load_grouped_split, family, split, name))


def _register(name: str, evaluator_type: str, load: Callable[[], list[Record]]) -> None:
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(evaluator_type=evaluator_type)


def load_grouped_split(family: str, split: str, name: str) -> list[Record]:
    """One record a picture, its expressions as categories; scored by their best token, as published evaluations are.

    Raises:
        FileNotFoundError: the annotations or the folder of pictures are absent.
    """
    annotations, images = _files(family, split)
    records = load_refexp(
        str(annotations), str(images), name, group_by_picture=True, targets_optional=family == "grefcoco"
    )
    return [{**record, "token_score": "max"} for record in records]


def load_caption_split(family: str, split: str, name: str) -> list[Record]:
    """One record an expression, as a caption; without phrases where it names nothing (gRefCOCO).

    Raises:
        FileNotFoundError: the annotations or the folder of pictures are absent.
    """
    annotations, images = _files(family, split)
    return load_mdetr(str(annotations), str(images), name)


def _files(family: str, split: str) -> tuple[Path, Path]:
    file = ANNOTATIONS / f"finetune_{FAMILIES[family][0]}_{split}.json"
    source = _GENERALIZED_SOURCE if family == "grefcoco" else _SOURCE
    return require(file, source), require(IMAGES, _IMAGES_SOURCE)
