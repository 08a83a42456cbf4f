import json

import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.build import load_records
from grounding_dino.data.datasets.coco_cleaning import CocoFormatError

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

IDS = np.array([[0, 300, 300], [5, 5, 70000]])
CATEGORIES = [{"id": 1, "name": "person", "isthing": 1}, {"id": 200, "name": "rug-merged", "isthing": 0}]


@pytest.fixture
def val(data_root, write_panoptic):
    """One picture: a person (segments 5 and 300) on a rug, without and with its semantic map."""
    places = ("coco/annotations/panoptic_val2017.json", "coco/val2017", "coco/panoptic_val2017")
    return write_panoptic(*places, {"000000000139": (IDS, {5: 1, 300: 1, 70000: 200})}, CATEGORIES)


def test_the_set_with_semantic_maps_has_them(val, data_root):
    name = "coco_2017_val_panoptic_with_sem_seg"
    with pytest.raises(FileNotFoundError, match=r"panoptic_semseg_val2017'; download .*prepare_coco.py --panoptic"):
        DatasetCatalog.get(name)
    folder = data_root / "coco/panoptic_semseg_val2017"
    folder.mkdir()
    (folder / "000000000139.png").touch()
    (record,) = load_records([name], filter_empty=True)
    assert record["sem_seg_file_name"] == str(folder / "000000000139.png")
    assert record["pan_seg_file_name"] == str(data_root / "coco/panoptic_val2017/000000000139.png")
    assert record["file_name"] == str(data_root / "coco/val2017/000000000139.jpg")
    assert [segment["category_id"] for segment in record["segments_info"]] == [0, 0, 132]
    assert [segment["isthing"] for segment in record["segments_info"]] == [True, True, False]
    metadata = MetadataCatalog.get(name)
    assert metadata.panoptic_json == str(data_root / "coco/annotations/panoptic_val2017.json")
    assert metadata.json_file == str(data_root / "coco/annotations/instances_val2017.json")


def test_detectron2s_set_is_read_through_checks(val, data_root):
    name, json_file = "coco_2017_val_panoptic", data_root / "coco/annotations/panoptic_val2017.json"
    (record,) = DatasetCatalog.get(name)
    assert [segment["category_id"] for segment in record["segments_info"]] == [0, 0, 132]
    assert "sem_seg_file_name" not in record
    metadata = MetadataCatalog.get(name)
    assert metadata.panoptic_json == str(json_file)
    assert metadata.json_file == str(data_root / "coco/annotations/instances_val2017.json")
    val["annotations"][0]["segments_info"][0]["category_id"] = 83
    json_file.write_text(json.dumps(val))
    with pytest.raises(CocoFormatError, match="the segment 5 in picture 000000000139.png .* has the category 83"):
        DatasetCatalog.get(name)
    json_file.unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic_val2017.json'; download"):
        DatasetCatalog.get(name)
