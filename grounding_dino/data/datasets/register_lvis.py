"""LVIS v1 (Gupta et al. 2019): COCO's pictures with 1203 classes, annotated for some of them each.

The sets replace the ones of the same names that Detectron2 brings: those prompt with the first synonym instead of the
name that the published models are prompted with, and fail without a word on where files come from.
"""

from __future__ import annotations

import functools
from typing import Any

from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.label_names import NAME_FIXES
from grounding_dino.data.datasets.register_coco_sets import CocoSet, load_coco_set

from detectron2.data import DatasetCatalog, MetadataCatalog

Record = dict[str, Any]

HINT = (
    "download LVIS v1 from https://www.lvisdataset.org/dataset, and COCO's pictures of 2017, and run "
    "`python datasets/prepare_lvis.py`, which unpacks them and makes minival"
)
# What a picture's record keeps for evaluation: category ids of the file.
FEDERATED_KEYS = ("not_exhaustive_category_ids", "neg_category_ids")
# minival as published, and as datasets/prepare_lvis.py takes it out of val
JSON_FILES = {
    "train": ("lvis/lvis_v1_train.json",),
    "val": ("lvis/lvis_v1_val.json",),
    "minival": ("lvis/lvis_v1_minival_inserted_image_name.json", "lvis/lvis_v1_minival.json"),
}


def register_lvis() -> None:
    """Register lvis_v1_train, lvis_v1_val and lvis_v1_minival; nothing is read before they are used."""
    for split in JSON_FILES:
        name = f"lvis_v1_{split}"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(load_lvis, split))
        MetadataCatalog.get(name).set(evaluator_type="lvis")


def load_lvis(split: str) -> list[Record]:
    """Records as Detectron2's `load_lvis_json` gives them, through the checks that every COCO json passes.

    Records have `not_exhaustive_category_ids` and `neg_category_ids` (the file's ids). The metadata has what
    `load_coco` sets and `category_frequencies` ("r", "c" or "f" for each class, "" where the file does not say).

    Raises:
        FileNotFoundError: annotations or pictures are absent.
        CocoFormatError: the annotations cannot be used.
    """
    name = f"lvis_v1_{split}"
    frequencies: dict[int, str] = {}

    def adapt(content: Record) -> Record:
        frequencies.update((c.get("id"), c.get("frequency", "")) for c in content["categories"])
        for annotation in content["annotations"]:
            annotation.setdefault("iscrowd", 0)  # LVIS has no crowds, and does not say so
        return {**content, "images": [_with_file_name(image) for image in content["images"]]}

    records = load_coco_set(
        CocoSet(name, JSON_FILES[split], "coco", HINT, NAME_FIXES["lvis_v1"], adapt, FEDERATED_KEYS, "lvis")
    )
    set_metadata(name, category_frequencies=[frequencies[number] for number in sorted(frequencies)])
    return records


def _with_file_name(image: Record) -> Record:
    """The picture with `file_name` relative to COCO's folder: `val2017/000000000139.jpg`, as its address ends."""
    address = image.get("coco_url")
    return {**image, "file_name": "/".join(address.split("/")[-2:])} if isinstance(address, str) else image
