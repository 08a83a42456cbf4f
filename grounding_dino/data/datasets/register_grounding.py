"""Grounding sets for pre-training: GoldG (Flickr30k, GQA/mixed), GRIT, Cap4M, and detection sets in ODVG form.

Files of rows stay on disk (`LazyRecords`), since these sets are large; of MDETR's json files all is held in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grounding_dino.data.datasets.extra import annotation_format
from grounding_dino.data.datasets.label_names import NAME_FIXES
from grounding_dino.data.datasets.mdetr import load_mdetr
from grounding_dino.data.datasets.paths import dataset_root, require
from grounding_dino.data.datasets.rows import TRAINING_ONLY
from grounding_dino.data.datasets.shards import load_shards

from detectron2.data import DatasetCatalog, MetadataCatalog

if TYPE_CHECKING:
    from grounding_dino.data.streaming import LazyRecords

Record = dict[str, Any]

_GOLDG = "https://huggingface.co/GLIPModel/GLIP/tree/main/mdetr_annotations"
_CONVERT = "`python tools/convert_data.py --from coco --to odvg`"


@dataclass(frozen=True)
class GroundingSet:
    """Where a set may lie, relative to the folder of data sets.

    Attributes:
        annotations: the first that is there is read; files of ODVG or GRIT rows, MDETR's json, or folders: of files of
            rows, or of tar files that hold the pictures too.
        image_root: folder of the pictures; not looked at where they lie in tar files.
        hint: where it comes from.
        label_map: of detection rows.
        fixes: given, class names are corrected with it.
    """

    name: str
    annotations: Sequence[str]
    image_root: str
    hint: str
    label_map: str = ""
    fixes: Mapping[str, str] | None = field(default=None)


GROUNDING_SETS = (
    GroundingSet(
        "objects365_v1_train_odvg",
        (
            "objects365v1/o365v1_train_odvg.jsonl",
            "objects365v1/o365v1_train_odvg.json",
            "objects365v1/o365v1_train_od.json",
        ),
        "objects365v1/train",
        f"{_CONVERT} makes it from objects365v1/objects365_train.json",
        "objects365v1/o365v1_label_map.json",
        NAME_FIXES["objects365_v1"],
    ),
    GroundingSet(
        "objects365_v2_train_odvg",
        (
            "objects365v2/annotations/zhiyuan_objv2_train_odvg.jsonl",
            "objects365v2/annotations/zhiyuan_objv2_train_od.json",
        ),
        "objects365v2/train",
        f"{_CONVERT} makes it from objects365v2/annotations/zhiyuan_objv2_train.json",
        "objects365v2/annotations/o365v2_label_map.json",
        NAME_FIXES["objects365_v2"],
    ),
    GroundingSet(
        "openimages_v6_train_odvg",
        (
            "OpenImages/annotations/openimages_v6_train_odvg.jsonl",
            "OpenImages/annotations/oidv6-train-annotations_od.json",
        ),
        "OpenImages/train",
        f"{_CONVERT} makes it from OpenImages/annotations/openimages_v6_train.json",
        "OpenImages/annotations/openimages_label_map.json",
        NAME_FIXES["openimages_v6"],
    ),
    GroundingSet(
        "v3det_train_odvg",
        ("V3Det/annotations/v3det_2023_v1_train_odvg.jsonl", "V3Det/annotations/v3det_2023_v1_train_od.json"),
        "V3Det",
        f"{_CONVERT} makes it from V3Det/annotations/v3det_2023_v1_train.json",
        "V3Det/annotations/v3det_2023_v1_label_map.json",
        NAME_FIXES["v3det"],
    ),
    GroundingSet(
        "goldg_flickr_train",
        (
            "flickr30k_entities/final_flickr_separateGT_train.jsonl",
            "flickr30k_entities/final_flickr_separateGT_train_vg.json",
            "flickr30k_entities/final_flickr_separateGT_train.json",
        ),
        "flickr30k_entities/flickr30k_images",
        f"its annotations are at {_GOLDG}, its pictures at https://shannon.cs.illinois.edu/DenotationGraph/ on request",
    ),
    GroundingSet(
        "goldg_mixed_train",
        (
            "gqa/final_mixed_train_no_coco.jsonl",
            "gqa/final_mixed_train_no_coco_vg.json",
            "gqa/final_mixed_train_no_coco.json",
        ),
        "gqa/images",
        f"its annotations are at {_GOLDG}, its pictures at https://nlp.stanford.edu/data/gqa/images.zip",
    ),
    GroundingSet(
        "goldg_mixed_coco_train",
        (
            "coco/mdetr_annotations/final_mixed_train_only_coco.jsonl",
            "coco/mdetr_annotations/final_mixed_train_only_coco_vg.json",
            "coco/mdetr_annotations/final_mixed_train_only_coco.json",
        ),
        "coco/train2014",
        f"take the entries with data_source 'coco' of final_mixed_train.json ({_GOLDG})",
    ),
    GroundingSet(
        "grit_train",
        ("grit/annotations", "grit"),
        "grit/images",
        "img2dataset downloads its pictures by https://huggingface.co/datasets/zzliang/GRIT into tar files",
    ),
    GroundingSet(
        "cap4m_train",
        ("cap4m/annotations", "cap4m"),
        "cap4m/images",
        "the authors' Cap4M is not public: put ODVG or GRIT rows of your own there",
    ),
)


def register_grounding() -> None:
    """Register the sets; their files are looked up when they are used. Nothing scores them."""
    for grounding_set in GROUNDING_SETS:
        if grounding_set.name not in DatasetCatalog:
            DatasetCatalog.register(grounding_set.name, functools.partial(load_grounding_set, grounding_set))
            MetadataCatalog.get(grounding_set.name).set(evaluator_type=TRAINING_ONLY)


def load_grounding_set(grounding_set: GroundingSet) -> list[Record] | LazyRecords:
    """The records of a set.

    Raises:
        FileNotFoundError: annotations or pictures are absent; the message says where they come from.
        ValueError: the annotations cannot be used.
    """
    candidates = grounding_set.annotations
    found = [path for path in candidates if (dataset_root() / path).exists()]
    path = require(
        (found or candidates)[0], f"{grounding_set.hint}; also read where it is: {', '.join(candidates[1:])}"
    )
    packed = path.is_dir() and any(path.glob("*.tar"))
    images = str(dataset_root() if packed else require(grounding_set.image_root, grounding_set.hint))
    if not packed and annotation_format(str(path)) == "mdetr":
        return load_mdetr(str(path), images, grounding_set.name)
    label_map = dataset_root() / grounding_set.label_map
    names_file = str(label_map) if grounding_set.label_map and label_map.is_file() else None
    return load_shards(str(path), images, grounding_set.name, names_file, grounding_set.fixes)
