import json

from grounding_dino.data.datasets import extra
from grounding_dino.data.datasets.extra import (
    ExtraDataset,
    annotation_format,
    parse_dataset_argument,
    register_extra_datasets,
)
from grounding_dino.data.datasets.rows import PHRASES_EVALUATOR, TRAINING_ONLY
from grounding_dino.data.streaming import LazyRecords

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
        ("cells=/a/x.jsonl:/mnt/10:30/images", ("cells", "/a/x.jsonl", "/mnt/10:30/images")),
        ("cells=/a/{00..03}.tar:.", ("cells", "/a/{00..03}.tar", ".")),
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


# ------------------------------------------------------------------------------------------------ formats of files

SIZE = {"height": 40, "width": 50}
IMAGE = {"id": 1, "file_name": "a.png", **SIZE}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 7], "iscrowd": 0, "area": 56}
REGION = {"bbox": [1, 2, 9, 9], "phrase": "a cat"}
CATEGORIES = [{"id": 1, "name": "cat"}]
SENTENCE = {**IMAGE, "caption": "a cat and a dog"}
WORDS = {**BOX, "tokens_positive": [[0, 5]]}
OTHER_WORDS = {**BOX, "id": 2, "tokens_positive": [[10, 15]]}
FILES = {
    "coco": ("x.json", {"images": [IMAGE], "annotations": [BOX], "categories": CATEGORIES}, "coco"),
    "captioned coco": ("x.json", {"images": [SENTENCE], "annotations": [BOX], "categories": CATEGORIES}, "coco"),
    "mdetr": (
        "x.json",
        {"images": [SENTENCE], "annotations": [WORDS, OTHER_WORDS], "categories": []},
        PHRASES_EVALUATOR,
    ),
    "mdetr's refcoco": ("x.json", {"images": [SENTENCE], "annotations": [WORDS], "categories": []}, "refexp"),
    "refexp": (
        "x.json",
        {"images": [IMAGE], "expressions": [{"id": 1, "image_id": 1, "caption": "cat", "bbox": [1, 2, 8, 7]}]},
        "refexp",
    ),
    "odvg detection": (
        "x.json",  # mmdet's ending
        {"filename": "a.png", **SIZE, "detection": {"instances": [{**REGION, "label": 0, "category": "cat"}]}},
        "coco",
    ),
    "odvg grounding": (
        "x.jsonl",
        {"filename": "a.png", **SIZE, "grounding": {"caption": "a cat", "regions": [REGION]}},
        PHRASES_EVALUATOR,
    ),
    "grit": (
        "x.jsonl",
        {"file_name": "a.png", **SIZE, "caption": "a cat", "noun_chunks": [[0, 5, 0.0, 0.0, 0.5, 0.5, 0.9]]},
        PHRASES_EVALUATOR,
    ),
}


@pytest.fixture
def argument(tmp_path, pictures, new_name):
    """`argument(file name, content)`: the --dataset argument of a file with this content."""

    def write(name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
        return f"{new_name}={tmp_path / name}:{pictures}"

    return write


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_in_the_format_that_it_has(argument, new_name, kind):
    name, content, evaluator = FILES[kind]
    register_extra_datasets([argument(name, content)])
    (record,) = DatasetCatalog.get(new_name)
    boxes = 2 if kind == "mdetr" else 1
    assert len(record["annotations"]) == boxes and record["file_name"].endswith("a.png")
    assert MetadataCatalog.get(new_name).evaluator_type == evaluator
    assert ("caption" in record) == (evaluator == PHRASES_EVALUATOR) and ("referring" in record) == (
        evaluator == "refexp"
    )


def test_errors_say_what_a_file_was_taken_for(argument, new_name):
    register_extra_datasets([argument("x.jsonl", "{\n{\n")])
    with pytest.raises(ValueError, match="x.jsonl yields nothing.*not JSON.*taken for ODVG rows"):
        DatasetCatalog.get(new_name)


@pytest.mark.parametrize("before", ["{\n", "\n\n", "[1]\n", "{}\n", "{\n" * 19])
@pytest.mark.parametrize("kind", ["grit", "odvg grounding"])
def test_rows_behind_broken_lines_say_what_a_file_is(argument, new_name, kind, before):
    _, content, evaluator = FILES[kind]
    register_extra_datasets([argument("x.jsonl", before + json.dumps(content) + "\n")])
    assert len(DatasetCatalog.get(new_name)) == 1
    assert MetadataCatalog.get(new_name).evaluator_type == evaluator


def test_large_row_files_and_tar_files_stay_on_disk(argument, new_name, monkeypatch, cache, write_tar, tmp_path):
    register_extra_datasets([argument("x.jsonl", FILES["odvg grounding"][1])])
    monkeypatch.setattr(extra, "_LARGE", 10)
    (record,) = records = DatasetCatalog.get(new_name)
    assert isinstance(records, LazyRecords) and record["caption"] == "a cat"
    assert MetadataCatalog.get(new_name).evaluator_type == TRAINING_ONLY
    write_tar("0.tar", [{**FILES["odvg grounding"][1], "filename": "0.png"}])
    assert annotation_format(str(tmp_path / "0.tar")) == annotation_format(str(tmp_path)) == "tar"
    assert annotation_format(str(tmp_path / "{0..3}.tar")) == annotation_format("rows-*.jsonl") == "tar"
    assert "image_bytes" in extra.load_extra(str(tmp_path), ".", new_name)[0]


def test_the_words_of_a_large_json_are_found_behind_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(extra, "_HEAD", 100)
    monkeypatch.setattr(extra, "_TAIL", 300)
    images = [{**IMAGE, "id": number, "caption": "a cat"} for number in range(100)]
    (tmp_path / "x.json").write_text(json.dumps({"images": images, "annotations": [WORDS]}))
    assert annotation_format(str(tmp_path / "x.json")) == "mdetr"
