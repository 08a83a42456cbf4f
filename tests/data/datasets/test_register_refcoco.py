import json

from grounding_dino.data.datasets import CocoFormatError
from grounding_dino.data.datasets.rows import TRAINING_ONLY

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcocoplus": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
    "grefcoco": ("val", "testA", "testB"),
}
FILES = {"refcoco": "refcoco", "refcocoplus": "refcoco+", "refcocog": "refcocog", "grefcoco": "grefcoco"}


def _entry(number, caption, file_name="COCO_train2014_000000000001.jpg"):
    return {"id": number, "file_name": file_name, "height": 40, "width": 60, "caption": caption, "original_id": 1}


def _annotation(number, image, box, words):
    return {"id": number, "image_id": image, "bbox": box, "area": 4, "category_id": 1, "tokens_positive": words}


@pytest.fixture(autouse=True)
def pictures(data_root, write_picture):
    """The folder of pictures, which is there."""
    for number in (1, 2):
        write_picture(data_root / f"coco/train2014/COCO_train2014_00000000000{number}.jpg")
    return data_root / "coco/train2014"


def _write(root, family, split, **more):
    content = {
        "images": [
            _entry(1, "left red ring"),
            _entry(2, "the star"),
            _entry(3, "a ring", "COCO_train2014_000000000002.jpg"),
        ],
        "annotations": [
            _annotation(1, 1, [1, 2, 3, 4], [[9, 13]]),
            _annotation(2, 2, [5, 6, 7, 8], [[4, 8]]),
            _annotation(3, 3, [1, 1, 9, 9], [[2, 6]]),
        ],
        "categories": [{"id": 1, "name": "thing"}],
        **more,
    }
    path = root / "coco/mdetr_annotations" / f"finetune_{FILES[family]}_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(("family", "split"), [(family, split) for family in SPLITS for split in SPLITS[family]])
def test_evaluation_splits_give_a_picture_with_its_expressions(data_root, family, split):
    _write(data_root, family, split)
    name = f"{family}_{split}"
    first, second = DatasetCatalog.get(name)
    assert first["categories"] == ["left red ring", "the star"] and first["expression_ids"] == [1, 2]
    assert second["categories"] == ["a ring"] and second["expression_ids"] == [3]
    assert [annotation["category_id"] for annotation in first["annotations"]] == [0, 1]
    assert first["file_name"] == str(data_root / "coco/train2014/COCO_train2014_000000000001.jpg")
    assert first["referring"] and first["token_score"] == "max"
    kind = "grefexp" if family == "grefcoco" else "refexp"
    assert MetadataCatalog.get(name).evaluator_type == kind


@pytest.mark.parametrize("family", SPLITS)
def test_training_has_an_expression_a_caption_with_its_marked_words_or_a_picture_a_prompt(data_root, family):
    _write(data_root, family, "train")
    captions = DatasetCatalog.get(f"{family}_train")
    assert [record["caption"] for record in captions] == ["left red ring", "the star", "a ring"]
    assert [record["phrases"] for record in captions] == [[[(9, 13)]], [[(4, 8)]], [[(2, 6)]]]
    assert [record["annotations"][0]["bbox"] for record in captions] == [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 9, 9]]
    assert MetadataCatalog.get(f"{family}_train").evaluator_type == TRAINING_ONLY
    grouped = DatasetCatalog.get(f"{family}_train_grouped")
    assert [record["categories"] for record in grouped] == [["left red ring", "the star"], ["a ring"]]


def test_expressions_of_grefcoco_name_any_number_of_things(data_root):
    content = _write(data_root, "grefcoco", "val")
    nothing = {"id": 4, "image_id": 2, "bbox": [0, 0, 0, 0], "category_id": -1, "empty": True}
    content["annotations"][1] = {**nothing, "tokens_positive": [[4, 8]]}
    content["annotations"].append(_annotation(5, 1, [20, 2, 3, 4], [[9, 13]]))
    for split in ("val", "train"):
        _write(data_root, "grefcoco", split, **content)
    first, _ = DatasetCatalog.get("grefcoco_val")
    assert first["categories"] == ["left red ring", "the star"]
    assert [annotation["category_id"] for annotation in first["annotations"]] == [0, 0]
    named, empty, _ = DatasetCatalog.get("grefcoco_train")
    assert len(named["annotations"]) == 2 and len(named["phrases"]) == 1
    assert empty["caption"] == "the star" and empty["phrases"] == [] and empty["annotations"] == []


def test_other_content_is_refused(data_root):
    _write(data_root, "refcoco", "val", images=[])
    with pytest.raises(CocoFormatError, match="neither a list 'expressions' nor captions"):
        DatasetCatalog.get("refcoco_val")


@pytest.mark.parametrize("name", ["refcoco_train", "refcoco_train_grouped"])
def test_missing_pictures_are_missed_before_a_training(data_root, pictures, name):
    _write(data_root, "refcoco", "train")
    for picture in pictures.iterdir():
        picture.unlink()
    with pytest.raises(FileNotFoundError, match="none of the first . pictures is in .*coco/train2014"):
        DatasetCatalog.get(name)
    pictures.rmdir()
    with pytest.raises(FileNotFoundError, match="coco/train2014.*https://cocodataset.org"):
        DatasetCatalog.get(name)
