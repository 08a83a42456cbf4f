import copy
import gzip
import json
import logging
import re

from grounding_dino.data.datasets import CocoFormatError, load_coco, register_coco

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

NAME = "test_coco_json"


@pytest.fixture(autouse=True)
def _clean_catalogs(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(NAME, None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(tmp_path / "pictures" / name)
    return tmp_path


def _content():
    box = {"iscrowd": 0, "area": 100.0}
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 9, "file_name": "b.png", "width": 60, "height": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2, 10, 10], **box},
            {"id": 2, "image_id": 9, "category_id": 90, "bbox": [3.5, 4, 20, 5], **box},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 5, "name": "cat"}],
    }


def _load(folder, content, **options):
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return load_coco(str(path), str(folder / "pictures"), NAME, **options)


def _scored(folder):
    with open(MetadataCatalog.get(NAME).json_file) as file:
        return json.load(file)


def test_a_sound_file_is_loaded_with_classes_in_the_order_of_their_ids(folder, caplog):
    records = _load(folder, _content(), strict=True)
    assert [record["image_id"] for record in records] == [7, 9]
    assert records[0]["annotations"][0]["category_id"] == 0
    assert records[1]["annotations"] == [
        {"bbox": [3.5, 4, 20, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    ]
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 90: 1}
    assert metadata.json_file == str(folder / "annotations.json")
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "warning", "boxes"),
    [
        ({"bbox": [50, 30, 30, 30]}, "clipped boxes that stand out of the picture: 1", [[50, 30, 10, 10]]),
        ({"bbox": [-5, 0, 15, 40.5]}, "clipped boxes", [[0, 0, 10, 40]]),
        ({"bbox": [50.5, 0, 10, 40.5]}, None, [[50.5, 0, 10, 40.5]]),
        ({"bbox": [-1, 0, 15, 41]}, None, [[-1, 0, 15, 41]]),
        ({"bbox": [50, 0, 11.25, 40]}, "clipped boxes", [[50, 0, 10, 40]]),
        ({"bbox": [5, 0, 10, 41.25]}, "clipped boxes", [[5, 0, 10, 40]]),
        ({"bbox": [100, 100, 10, 10]}, "box is outside the picture: 1", []),
        ({"bbox": [10, 10, 0, 5]}, "box has no area: 1 .first: annotation 1 of picture 7", []),
        ({"bbox": [10, 10, -3, 5]}, "box has no area", []),
        ({"bbox": [10, 10, float("nan"), 5]}, "box is not four finite numbers", []),
        ({"bbox": [10, 10, 5]}, "box is not four finite numbers", []),
        ({"bbox": None}, "box is not four finite numbers", []),
        ({"bbox": [10**400, 0, 1, 1]}, "box is not four finite numbers", []),
        ({"category_id": "5"}, r'text for numbers, or the other way \("7" and 7\): 1', [[1, 2, 10, 10]]),
        ({"image_id": "7"}, "text for numbers.*: 1 .first: annotation 1 of picture '7'", [[1, 2, 10, 10]]),
        ({"image_id": 7.0}, None, [[1, 2, 10, 10]]),
        ({"image_id": "7" * 5000}, "pictures that are not listed", []),
        ({"id": {"a": 1}}, "renumbered annotations with no usable id", [[1, 2, 10, 10]]),
        ({"category_id": 4}, "categories that are not listed: 1 .first: annotation 1 of picture 7, category 4", []),
        ({"image_id": 1000}, "pictures that are not listed", []),
        ({"image_id": [7]}, "pictures that are not listed", []),
        ({"iscrowd": "yes"}, "strange 'iscrowd'", [[1, 2, 10, 10]]),
        ({"area": None}, "filled in 'area'", [[1, 2, 10, 10]]),
        ({"segmentation": [[1, 2, 3, 4]]}, "unusable segmentations", [[1, 2, 10, 10]]),
        ({"segmentation": {"size": [1, 1], "counts": "1"}}, "unusable segmentations", [[1, 2, 10, 10]]),
        (
            {"segmentation": {"size": [40, 60], "counts": [100, 50]}},
            "unusable segmentations .*first: annotation 1 of picture 7, the runs of an RLE fill 150 pixels of 2400",
            [[1, 2, 10, 10]],
        ),
        (
            {"segmentation": {"size": [40, 60], "counts": "0d20"}},
            "unusable segmentations .*picture 7, the runs of an RLE fill 84 pixels of 2400",
            [[1, 2, 10, 10]],
        ),
        ({"id": 2}, "renumbered annotations with an id that was there already: 1", [[1, 2, 10, 10]]),
        ({"id": 0}, "renumbered annotations with no usable id", [[1, 2, 10, 10]]),
    ],
)
def test_a_bad_annotation_is_repaired_or_dropped_with_one_warning(folder, caplog, change, warning, boxes):
    content = _content()
    content["annotations"][0].update(change)
    records = _load(folder, content)
    assert [item["bbox"] for item in records[0]["annotations"]] == boxes
    assert len(records[1]["annotations"]) == 1
    if warning is None:
        assert not caplog.records
        return
    assert sum(bool(re.search(warning, record.getMessage())) for record in caplog.records) == 1
    # What is scored is what was loaded.
    assert sum(item["image_id"] == 7 for item in _scored(folder)["annotations"]) == len(boxes)
    ids = [item["id"] for item in _scored(folder)["annotations"]]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    with pytest.raises(CocoFormatError, match="needs repairs"):
        _load(folder, content, strict=True)


def test_a_kind_of_repair_is_reported_once_with_its_count(folder, caplog):
    content = _content()
    for number in range(3, 8):
        content["annotations"].append({**content["annotations"][0], "id": number, "bbox": [0, 0, 0, 0]})
    _load(folder, content)
    (message,) = [record.getMessage() for record in caplog.records if "no area" in record.getMessage()]
    assert "no area: 5 (first: annotation 3" in message


def test_crowd_regions_are_kept_and_marked(folder):
    content = _content()
    content["annotations"][0].update(iscrowd=1, segmentation={"size": [40, 60], "counts": [2000, 400]})
    (crowd,) = _load(folder, content, strict=True)[0]["annotations"]
    assert crowd["iscrowd"] == 1
    assert crowd["segmentation"]["size"] == [40, 60]


def test_polygons_with_too_few_corners_leave_the_others(folder):
    content = _content()
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9], [1, 1, 2, 2]]
    (item,) = _load(folder, content)[0]["annotations"]
    assert item["segmentation"] == [[1, 1, 9, 1, 9, 9]]


def test_missing_and_repeated_pictures_are_dropped(folder, caplog):
    content = _content()
    content["images"] += [
        {"id": 10, "file_name": "gone.png", "width": 60, "height": 40},
        {"id": 7, "file_name": "b.png", "width": 60, "height": 40},
    ]
    content["annotations"].append({**content["annotations"][0], "id": 3, "image_id": 10})
    records = _load(folder, content)
    assert [record["file_name"].rsplit("/", 1)[-1] for record in records] == ["a.png", "b.png"]
    assert "gone.png" in caplog.text and "id was there already" in caplog.text
    assert [image["id"] for image in _scored(folder)["images"]] == [7, 9]


def test_picture_ids_of_two_types_become_numbers_and_the_annotations_follow(folder, caplog):
    content = _content()
    content["images"][1]["id"] = content["annotations"][1]["image_id"] = "b"
    records = _load(folder, content)
    assert [record["image_id"] for record in records] == [7, 8]
    assert [len(record["annotations"]) for record in records] == [1, 1]
    assert [annotation["image_id"] for annotation in _scored(folder)["annotations"]] == [7, 8]
    assert "whose id is text, since the others' are numbers: 1 (first: 'b', now 8)" in caplog.text
    caplog.clear()
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "a"
    assert [record["image_id"] for record in _load(folder, content, strict=True)] == ["a", "b"]
    assert not caplog.records


def test_annotations_find_their_pictures_where_ids_are_text_on_one_side_only(folder):
    content = _content()
    for image in content["images"]:
        image["id"] = str(image["id"])
    assert [len(record["annotations"]) for record in _load(folder, content)] == [1, 1]
    scored = _scored(folder)
    assert [a["image_id"] for a in scored["annotations"]] == [i["id"] for i in scored["images"]] == ["7", "9"]


def test_a_size_that_no_picture_has_is_read_from_the_file(folder, caplog):
    content = _content()
    content["images"][0]["width"] = 10**400
    assert _load(folder, content)[0]["width"] == 60
    assert "filled in the size" in caplog.text


def test_names_that_prompts_write_alike_are_named(folder, caplog):
    _load(folder, _with("categories", 0, name=" CAT"))
    assert "two categories ' CAT'" not in caplog.text and "two categories 'cat'" in caplog.text


def test_the_longest_name_of_a_prompt_is_loaded(folder):
    _load(folder, _with("categories", 0, name="cat " * 253), strict=True)


def test_a_missing_size_is_read_from_the_picture(folder, caplog):
    content = _content()
    del content["images"][0]["width"]
    (folder / "pictures" / "b.png").write_bytes(b"no picture")
    content["images"][1]["height"] = 0
    (record,) = _load(folder, content)
    assert (record["width"], record["height"]) == (60, 40)
    assert "whose file cannot be read" in caplog.text


def test_a_file_without_annotations_can_be_predicted_on(folder, caplog):
    content = _content()
    del content["annotations"]
    assert [record["annotations"] for record in _load(folder, content)] == [[], []]
    assert "no annotations" in caplog.text


def _without(key):
    content = _content()
    del content[key]
    return content


def _with(key, index, **change):
    content = _content()
    content[key][index].update(change)
    return content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds a list"),
        ({"info": {}}, "no key 'images' .it has: info"),
        ({"images": 3}, "no list 'images'"),
        ({**_content(), "images": []}, "lists no pictures"),
        ({**_content(), "images": ["a.png"]}, "entry 0 of 'images'"),
        (_without("categories"), "no list 'categories'"),
        (_with("categories", 1, name=None), "category 1 of .*has no 'name'"),
        (_with("categories", 1, name=" . "), "the 'name' of category 1 of .*contains no word"),
        (_with("categories", 1, name="\u200b"), "the 'name' of category 1 of .*contains no word"),
        (_with("categories", 1, name="\x00"), "the 'name' of category 1 of .*contains no word"),
        (_with("categories", 1, name="cat " * 254), "the 'name' of category 1 of .*at most 253; shorten"),
        (_with("categories", 1, id="5"), "category 1 of .*has no integer 'id'"),
        (_with("categories", 1, id=90), "has the id of 'dog' too"),
        (_with("images", 0, id=None), "picture 0 of .*has no 'id'"),
        (_with("images", 0, file_name=3), "picture 0 of .*has no 'file_name'"),
        ({**_content(), "images": [{**_content()["images"][0], "file_name": "x.png"}]}, "no usable picture.*x.png"),
    ],
)
def test_what_cannot_be_repaired_is_refused_with_the_record(folder, content, sentence):
    with pytest.raises(CocoFormatError, match=sentence):
        _load(folder, content)


def test_unreadable_files_and_folders_are_named(folder):
    path = folder / "broken.json"
    path.write_text('{"images": [')
    with pytest.raises(CocoFormatError, match="broken.json is not readable as JSON"):
        load_coco(str(path), str(folder))
    path.write_bytes(gzip.compress(json.dumps(_content()).encode()))
    with pytest.raises(CocoFormatError, match=r"broken.json is compressed \(gzip\); unpack it"):
        load_coco(str(path), str(folder))
    path.write_bytes(b"\xff\xfe\x00\x00binary")
    with pytest.raises(CocoFormatError, match="not readable as JSON"):
        load_coco(str(path), str(folder))
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        load_coco(str(folder / "none.json"), str(folder))
    path.write_text(json.dumps(_content()))
    with pytest.raises(FileNotFoundError, match="no picture folder"):
        load_coco(str(path), str(folder / "nowhere"))


def test_the_content_given_is_not_changed(folder):
    from grounding_dino.data.datasets.coco_cleaning import clean_coco

    content = _with("annotations", 0, bbox=[50, 30, 30, 30], id=2)
    before = copy.deepcopy(content)
    clean_coco(content, "x.json", str(folder / "pictures"))
    assert content == before


def test_registered_names_load_on_use_and_follow_a_changed_file(folder, caplog):
    path = folder / "annotations.json"
    register_coco(NAME, str(path), str(folder / "pictures"))
    with pytest.raises(ValueError, match="there is a data set"):
        register_coco(NAME, str(path), str(folder / "pictures"))
    with caplog.at_level(logging.ERROR):
        path.write_text(json.dumps(_content()))
        assert len(DatasetCatalog.get(NAME)) == 2
        path.write_text(json.dumps(_with("categories", 0, name="wolf")))
        assert len(DatasetCatalog.get(NAME)) == 2
    assert MetadataCatalog.get(NAME).thing_classes == ["cat", "wolf"]
    assert MetadataCatalog.get(NAME).evaluator_type == "coco"
