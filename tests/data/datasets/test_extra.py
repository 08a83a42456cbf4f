from grounding_dino.data.datasets.extra import ExtraDataset, parse_dataset_argument, register_extra_datasets

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cells=a/train.json:a/images", ("cells", "a/train.json", "a/images")),
        (r"cells=C:\a\train.json:D:\a b\images", ("cells", r"C:\a\train.json", r"D:\a b\images")),
        ("cells=C:/a/train.json:images", ("cells", "C:/a/train.json", "images")),
        (r"cells=train.json:D:\images", ("cells", "train.json", r"D:\images")),
        ("cells=a=b.json:im=ages", ("cells", "a=b.json", "im=ages")),
        ("cells=/a/x.json:/mnt/10:30/images", ("cells", "/a/x.json", "/mnt/10:30/images")),
    ],
)
def test_arguments_are_read(text, expected):
    assert parse_dataset_argument(text) == ExtraDataset(*expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a.json:images", "names no data set"),
        ("=a.json:images", "names no data set"),
        ("my cells=a.json:images", "space, comma or bracket"),
        ("cells=a.json", "cannot tell annotations from picture folder"),
        ("cells=a:b:c", "cannot tell annotations from picture folder"),
        ("cells=a.json:", "has no picture folder"),
        ("cells=:images", "has no annotation file"),
        (r"cells=C:\a.json", "cannot tell"),
    ],
)
def test_other_forms_are_refused_in_words(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_dataset_argument(text)


def test_registering_twice_is_no_error_but_another_file_under_the_name_is():
    name = "test_extra_twice"
    try:
        assert register_extra_datasets([f"{name}=a.json:images"] * 2) == [name, name]
        assert name in DatasetCatalog
        with pytest.raises(ValueError, match="choose another name"):
            register_extra_datasets([f"{name}=b.json:images"])
    finally:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_a_name_of_the_project_cannot_be_taken():
    with pytest.raises(ValueError, match="'shapes_val' already"):
        register_extra_datasets(["shapes_val=a.json:images"])
