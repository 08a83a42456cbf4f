"""The rendered data set of coloured shapes: shapes_{train,val,unseen} and shapes_{train,val,unseen}_refexp."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.coco_json import load_coco
from grounding_dino.data.datasets.refexp_json import load_refexp
from grounding_dino.data.shapes.prepare import SPLITS, default_output

from detectron2.data import DatasetCatalog, MetadataCatalog


def register_shapes() -> None:
    """Register the splits for detection and for referring expressions; the folder is looked up when they are used."""
    for split in SPLITS:
        _register(f"shapes_{split}", "coco", functools.partial(_load_detection, split))
        _register(f"shapes_{split}_refexp", "refexp", functools.partial(_load_expressions, split))


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
