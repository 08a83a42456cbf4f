"""A data set of one's own: a table of boxes, one a row, beside its pictures.

berries/boxes.csv    file,name,x0,y0,x1,y1
berries/images/      the pictures
"""

import csv
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.data.datasets.paths import dataset_root

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

NAMES = ["ripe berry", "green berry"]  # what the model is asked for


def load_berries() -> list[dict[str, Any]]:
    """The records of all pictures; called when the set is used, not when it is registered."""
    folder = Path(dataset_root()) / "berries"
    records: dict[str, dict[str, Any]] = {}
    with open(folder / "boxes.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["file"] not in records:
                path = folder / "images" / row["file"]
                with Image.open(path) as picture:
                    size = {"width": picture.width, "height": picture.height}
                records[row["file"]] = {"file_name": str(path), "image_id": len(records) + 1, **size, "annotations": []}
            box = [float(row[side]) for side in ("x0", "y0", "x1", "y1")]
            annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": NAMES.index(row["name"])}
            records[row["file"]]["annotations"].append(annotation)
    return list(records.values())


DatasetCatalog.register("berries", load_berries)
MetadataCatalog.get("berries").set(thing_classes=NAMES, evaluator_type="coco")
