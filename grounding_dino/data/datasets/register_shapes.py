"""The rendered data set of coloured shapes: shapes_{train,val,unseen} and shapes_{train,val,unseen}_refexp.

shapes_{train,val} also as shapes_{train,val}_{panoptic,sem_seg}: the 80 objects' classes before three of backgrounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.coco_json import load_coco
from grounding_dino.data.datasets.refexp_json import load_refexp
from grounding_dino.data.datasets.segmentation_classes import SegmentationClass, spread_color
from grounding_dino.data.datasets.segmentation_sets import register_panoptic_set, register_semantic_set
from grounding_dino.data.shapes.prepare import FOLDER, SEGMENT_SPLITS, SPLITS, default_output
from grounding_dino.data.shapes.vocabulary import STUFF_IDS, TRAIN_PAIRS, category_ids

from detectron2.data import DatasetCatalog, MetadataCatalog

SEGMENTS_HINT = "`python datasets/prepare_shapes.py` makes it, and keeps the pictures that are there"
CLASSES = tuple(
    SegmentationClass(number, name, number not in STUFF_IDS.values(), spread_color(place))
    for place, (name, number) in enumerate({**category_ids(TRAIN_PAIRS), **STUFF_IDS}.items())
)


def register_shapes() -> None:
    """Register the splits for all tasks; the folder is looked up when they are used."""
    for split in SPLITS:
        _register(f"shapes_{split}", "coco", functools.partial(_load_detection, split))
        _register(f"shapes_{split}_refexp", "refexp", functools.partial(_load_expressions, split))
    for split in SEGMENT_SPLITS:
        _register_segments(split)


def _register_segments(split: str) -> None:
    images, labels = f"{FOLDER}/{split}", f"{FOLDER}/{split}_sem_seg"
    register_semantic_set(f"shapes_{split}_sem_seg", CLASSES, SEGMENTS_HINT, images, labels)
    register_panoptic_set(
        f"shapes_{split}_panoptic",
        CLASSES,
        SEGMENTS_HINT,
        image_root=images,
        panoptic_root=f"{FOLDER}/{split}_panoptic",
        panoptic_json=f"{FOLDER}/annotations/{split}_panoptic.json",
        json_file=f"{FOLDER}/annotations/{split}.json",
        sem_seg_root=labels,
    )


def _register(name: str, evaluator_type: str, load: Callable[[], list[dict[str, Any]]]) -> None:
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(evaluator_type=evaluator_type)


def _load_detection(split: str) -> list[dict[str, Any]]:
    root = _root(split)
    return load_coco(str(root / "annotations" / f"{split}.json"), str(root / split), f"shapes_{split}")


def _load_expressions(split: str) -> list[dict[str, Any]]:
    root = _root(split)
    json_file = str(root / "annotations" / f"{split}_refexp.json")
    return load_refexp(json_file, str(root / split), f"shapes_{split}_refexp", group_by_picture=split == "train")


def _root(split: str) -> Path:
    root = default_output()
    if not (root / "annotations" / f"{split}_refexp.json").is_file():  # written last
        raise FileNotFoundError(
            f"the split {split!r} of the shapes data set is not in {root}; `python datasets/prepare_shapes.py` "
            "renders it there (set DETECTRON2_DATASETS for another place)"
        )
    return root
