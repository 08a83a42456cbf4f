"""Cityscapes (Cordts et al. 2016), fine annotations: 19 classes, of which 8 are things.

cityscapesscripts is not needed: `datasets/prepare_cityscapes.py` makes what is not in the downloads from the label and
instance maps that are. Sets of the same names that Detectron2 brings are replaced, since they need that package to be
read and to be scored; panoptic quality and mIoU are the same measures here.
"""

from __future__ import annotations

from typing import Any

from grounding_dino.data.datasets.segmentation_classes import SegmentationClass
from grounding_dino.data.datasets.segmentation_sets import (
    register_instance_set,
    register_panoptic_set,
    register_semantic_set,
)

from detectron2.data import DatasetCatalog, MetadataCatalog

HINT = (
    "download {gtFine,leftImg8bit}_trainvaltest.zip from https://www.cityscapes-dataset.com/downloads into cityscapes/ "
    "and run `python datasets/prepare_cityscapes.py`, which unpacks them and makes the rest"
)
SPLITS = ("train", "val")
PICTURE = "_leftImg8bit.png"
TRAIN_IDS = "_gtFine_labelTrainIds.png"

_STUFF = """
7 road 804080, 8 sidewalk f423e8, 11 building 464646, 12 wall 66669c, 13 fence be9999, 17 pole 999999,
19 traffic light faaa1e, 20 traffic sign dcdc00, 21 vegetation 6b8e23, 22 terrain 98fb98, 23 sky 4682b4
"""
_THINGS = """
24 person dc143c, 25 rider ff0000, 26 car 00008e, 27 truck 000046, 28 bus 003c64, 31 train 005064,
32 motorcycle 0000e6, 33 bicycle 770b20
"""


def _parse(table: str, is_thing: bool) -> list[SegmentationClass]:
    """Entries of label id, name and colour. (The indices of the whole list are the benchmark's train ids.)"""
    classes = []
    for entry in table.replace("\n", " ").split(","):
        number, *words, color = entry.split()
        red, green, blue = bytes.fromhex(color)
        classes.append(SegmentationClass(int(number), " ".join(words), is_thing, (red, green, blue)))
    return classes


CLASSES = (*_parse(_STUFF, False), *_parse(_THINGS, True))


def instance_json(split: str) -> str:
    """The COCO json of a split's instances below the folder of data sets."""
    return f"cityscapes/gtFine/cityscapes_instance_{split}.json"


def register_cityscapes() -> None:
    """Register cityscapes_fine_{sem_seg,instance,panoptic}_{train,val}, and Detectron2's ..._instance_seg_..."""
    for split in SPLITS:
        names = [f"cityscapes_fine_{kind}_{split}" for kind in ("sem_seg", "instance", "instance_seg", "panoptic")]
        for name in names:
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        semantic, *instance, panoptic = names
        images, labels = f"cityscapes/leftImg8bit/{split}", f"cityscapes/gtFine/{split}"
        register_semantic_set(semantic, CLASSES, HINT, images, labels, PICTURE, TRAIN_IDS)
        for name in instance:
            register_instance_set(name, CLASSES, HINT, images, instance_json(split))
        register_panoptic_set(
            panoptic,
            CLASSES,
            HINT,
            image_root=images,
            panoptic_root=f"cityscapes/gtFine/cityscapes_panoptic_{split}",
            panoptic_json=f"cityscapes/gtFine/cityscapes_panoptic_{split}.json",
            json_file=instance_json(split),
            sem_seg_root=labels,
            picture_of=lambda image: _in_city(image["id"], PICTURE),
            label_map_of=lambda annotation: _in_city(annotation["image_id"], TRAIN_IDS),
        )


def _in_city(image_id: Any, ending: str) -> str:
    """ulm_000000_000019 -> ulm/ulm_000000_000019 with an ending; the json does not name the folders of cities."""
    return f"{str(image_id).split('_')[0]}/{image_id}{ending}"
