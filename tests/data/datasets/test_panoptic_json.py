"""A panoptic json becomes records; what is wrong with it is said with the file, the picture and the segment."""

import json

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.panoptic_json import load_panoptic
from grounding_dino.data.datasets.segmentation_classes import SegmentationClass, panoptic_metadata

import numpy as np
import pytest

BLACK = (0, 0, 0)
CLASSES = [SegmentationClass(3, "cat", True, BLACK), SegmentationClass(40, "sky", False, BLACK)]
CATEGORIES = [{"id": 40, "name": "sky", "isthing": 0}, {"id": 3, "name": "cat", "isthing": 1}]
IDS = np.array([[0, 7, 7, 70000]] * 2)


@pytest.fixture
def panoptic(data_root, write_panoptic):
    """The json's content of two pictures, and `load(content)`."""
    content = write_panoptic(
        "p.json", "jpg", "png", {"a": (IDS, {7: 3, 70000: 40}), "b": (IDS, {7: 40, 70000: 3})}, CATEGORIES
    )

    def load(changed=None, metadata=None, **options):
        (data_root / "p.json").write_text(json.dumps(changed or content))
        paths = (str(data_root / name) for name in ("p.json", "jpg", "png"))
        return load_panoptic(*paths, metadata or panoptic_metadata(CLASSES), **options)

    return content, load


def test_records_are_detectron2s(panoptic, data_root):
    content, load = panoptic
    content["annotations"][1]["segments_info"][0].update(iscrowd=1, area=4, bbox=[1, 0, 2, 2])
    first, second = load()
    assert first == {
        "file_name": str(data_root / "jpg/a.jpg"),
        "image_id": 1,
        "height": 2,
        "width": 4,
        "pan_seg_file_name": str(data_root / "png/a.png"),
        "segments_info": [
            {"id": 7, "category_id": 0, "iscrowd": 0, "isthing": True},
            {"id": 70000, "category_id": 1, "iscrowd": 0, "isthing": False},
        ],
    }
    assert second["segments_info"][0] == {
        **{"id": 7, "category_id": 1, "iscrowd": 1, "isthing": False, "area": 4, "bbox": [1, 0, 2, 2]}
    }


def test_stuff_may_be_numbered_without_the_things_as_in_detectron2s_metadata(panoptic):
    metadata = {"thing_dataset_id_to_contiguous_id": {3: 0}, "stuff_dataset_id_to_contiguous_id": {40: 1}}
    assert panoptic[1](metadata=metadata) == panoptic[1]()


def test_pictures_and_semantic_maps_may_lie_elsewhere(panoptic, data_root):
    (data_root / "jpg/city").mkdir()
    for name in "ab":
        (data_root / f"jpg/{name}.jpg").rename(data_root / f"jpg/city/{name}.jpg")
    record, _ = panoptic[1](
        picture_of=lambda image: f"city/{image['file_name']}",
        label_map_of=lambda annotation: str(data_root / "png" / annotation["file_name"]),
    )
    assert record["file_name"] == str(data_root / "jpg/city/a.jpg")
    assert record["sem_seg_file_name"] == record["pan_seg_file_name"]


def _segment(**changes):
    return lambda content: content["annotations"][1]["segments_info"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_segment(category_id=4), r"the segment 7 in picture b.png of .*p.json has the category 4, .* none of the 2"),
        (_segment(id=0), r"a segment in picture b.png of .*p.json has the id 0; it has to be a number from 1"),
        (_segment(id="7"), r"has the id '7'"),
        (_segment(id=256**3), r"has the id 16777216"),
        (_segment(id=70000), r"picture b.png of .*p.json has two segments with the id 70000"),
        (_segment(iscrowd=2), r"the segment 7 in picture b.png of .* has 'iscrowd': 2"),
        (
            lambda c: c["annotations"][0]["segments_info"].append(3),
            r"a segment in picture a.png .* is 3, not an object",
        ),
        (
            lambda c: c["annotations"][1].update(image_id=1),
            r"annotation 1 of .*\(b.png\) is the second of the picture 1",
        ),
        (lambda c: c["annotations"][1].pop("segments_info"), r"\(b.png\) has no list 'segments_info'"),
        (lambda c: c["annotations"][1].pop("file_name"), r"annotation 1 of .*p.json has no 'file_name'"),
        (lambda c: c["images"][1].update(id=1), r"p.json has two pictures with the id 1"),
        (lambda c: c["images"][1].pop("file_name"), r"picture 1 of .*p.json has no 'id' or no 'file_name'"),
        (lambda c: c["categories"][0].update(id=5), r"has the category 5 \('sky'\), which is none of the 2 classes"),
        (lambda c: c["categories"][0].update(isthing=1), r"the category 40 \('sky'\) is a thing, but .* 40 is stuff"),
        (lambda c: c["annotations"].clear(), r"has no usable picture"),
    ],
)
def test_what_cannot_be_used_is_named(panoptic, change, sentence):
    content, load = panoptic
    change(content)
    with pytest.raises(CocoFormatError, match=sentence):
        load(content)


def test_a_missing_png_is_named_with_the_number_of_others(panoptic, data_root):
    for name in "ab":
        (data_root / f"png/{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no '.*a.png', which .*p.json needs \(2 such maps of 2"):
        panoptic[1]()


def test_missing_and_unlisted_pictures_are_counted(panoptic, data_root, caplog):
    content, load = panoptic
    (data_root / "jpg/b.jpg").unlink()
    content["annotations"].append({"image_id": 9, "file_name": "c.png", "segments_info": []})
    content["images"].append({"id": 4, "file_name": "d.jpg"})
    assert [record["image_id"] for record in load(content)] == [1]
    assert "dropped pictures that are missing in" in caplog.text
    assert "dropped segments of pictures that are not listed: 1 (first: c.png, 9)" in caplog.text
    assert "left out pictures without segments_info: 1 (first: picture 4)" in caplog.text


def test_a_picture_without_any_segment_stays(panoptic):
    content, load = panoptic
    content["annotations"][0]["segments_info"] = []
    assert load(content)[0]["segments_info"] == []


def test_the_folder_of_pictures_has_to_be_there(panoptic, data_root):
    with pytest.raises(FileNotFoundError, match="no picture folder"):
        load_panoptic(str(data_root / "p.json"), str(data_root / "no"), "png", panoptic_metadata(CLASSES))
