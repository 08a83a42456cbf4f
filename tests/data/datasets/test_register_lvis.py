import json
import os

import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.build import load_records

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances

NAMES = ["aerosol_can", "bow_(weapon)", "fishbowl"]


@pytest.fixture
def write_lvis(data_root, write_coco):
    """One picture of val2017 and one of train2017, in the file's own order of ids 9 and 4."""

    def write(json_file):
        federated = {"not_exhaustive_category_ids": [3], "neg_category_ids": [1, 2]}
        pictures = [
            ("", f"coco/{folder}/{number:012d}.jpg", {"id": number, **federated})
            for folder, number in (("val2017", 9), ("train2017", 4))
        ]
        content = write_coco(json_file, NAMES, pictures)
        for image, annotation, (_, path, _) in zip(content["images"], content["annotations"], pictures):
            image["coco_url"] = f"http://images.cocodataset.org/{path.removeprefix('coco/')}"
            del image["file_name"], annotation["iscrowd"]
        for category, frequency in zip(content["categories"], "fcr"):
            category.update(frequency=frequency, synonyms=["synonym"])
        (data_root / json_file).write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("name", "json_file"),
    [
        ("lvis_v1_train", "lvis/lvis_v1_train.json"),
        ("lvis_v1_val", "lvis/lvis_v1_val.json"),
        ("lvis_v1_minival", "lvis/lvis_v1_minival_inserted_image_name.json"),
        ("lvis_v1_minival", "lvis/lvis_v1_minival.json"),
    ],
)
def test_lvis_has_cocos_pictures_its_own_names_and_what_was_looked_for(name, json_file, data_root, write_lvis, caplog):
    write_lvis(json_file)
    records = load_records([name])
    assert [record["image_id"] for record in records] == [9, 4]
    assert records[0]["file_name"] == os.path.join(data_root, "coco", "val2017/000000000009.jpg")
    assert records[1]["not_exhaustive_category_ids"] == [3]
    assert records[1]["neg_category_ids"] == [1, 2]
    assert [record["annotations"][0]["category_id"] for record in records] == [0, 1]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["aerosol can", "bow", "fishbowl"]
    assert metadata.original_names == NAMES
    assert metadata.category_frequencies == ["f", "c", "r"]
    assert metadata.evaluator_type == "lvis"
    assert metadata.json_file == str(data_root / json_file)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_records_keep_the_polygons_that_masks_are_made_of(data_root, write_lvis):
    write_lvis("lvis/lvis_v1_val.json")
    path = data_root / "lvis/lvis_v1_val.json"
    content = json.loads(path.read_text())
    triangle, square = [1.5, 2, 11, 2, 11, 22], [2, 3, 5, 3, 5, 6, 2, 6]
    for annotation in content["annotations"]:
        annotation["segmentation"] = [triangle, square]
    path.write_text(json.dumps(content))
    records = load_records(["lvis_v1_val"])
    assert [record["annotations"][0]["segmentation"] for record in records] == [[triangle, square]] * 2
    instances = annotations_to_instances(records[0]["annotations"], (40, 60), mask_format="bitmask")
    assert instances.gt_masks.tensor[0, 4, 3] and instances.gt_masks.tensor[0, 3, 9]
    assert not instances.gt_masks.tensor[0, 20, 2]


def test_the_published_minival_is_taken_where_both_are_there(data_root, write_lvis):
    write_lvis("lvis/lvis_v1_minival.json")
    write_lvis("lvis/lvis_v1_minival_inserted_image_name.json")
    DatasetCatalog.get("lvis_v1_minival")
    assert MetadataCatalog.get("lvis_v1_minival").json_file.endswith("inserted_image_name.json")
