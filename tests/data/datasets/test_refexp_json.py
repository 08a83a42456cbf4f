import json
import re

from grounding_dino.data.datasets import CocoFormatError, load_refexp
from grounding_dino.data.datasets.refexp_json import gather_expressions

import pytest


def _write(tmp_path, content):
    path = tmp_path / "refexp.json"
    path.write_text(json.dumps(content))
    return str(path)


def _ours(**change):
    image = {"id": 1, "file_name": "a.jpg", "width": 50, "height": 40}
    expressions = [
        {"id": 11, "image_id": 1, "caption": "the red star", "bbox": [1, 2, 3, 4]},
        {"id": 12, "image_id": 1, "caption": "the left ring", "bbox": [5, 6, 7, 8], **change},
    ]
    return {"images": [image], "expressions": expressions}


def test_one_record_an_expression_or_a_picture(tmp_path):
    path = _write(tmp_path, _ours())
    single = load_refexp(path, None)
    assert [record["categories"] for record in single] == [["the red star"], ["the left ring"]]
    assert [record["expression_ids"] for record in single] == [[11], [12]]
    assert [record["annotations"][0]["category_id"] for record in single] == [0, 0]
    (grouped,) = load_refexp(path, None, group_by_picture=True)
    assert grouped["categories"] == ["the red star", "the left ring"]
    assert [annotation["category_id"] for annotation in grouped["annotations"]] == [0, 1]
    assert grouped["file_name"].endswith("a.jpg") and grouped["referring"] is True


def test_evaluation_gathers_the_expressions_of_a_picture(tmp_path):
    path = _write(tmp_path, _ours())
    alone, grouped = load_refexp(path, None), load_refexp(path, None, group_by_picture=True)
    assert len(alone) == 2
    assert gather_expressions(alone) == grouped
    assert gather_expressions(grouped) == grouped
    assert [record["categories"] for record in alone] == [["the red star"], ["the left ring"]]  # unchanged
    classes = {"file_name": "a.jpg", "annotations": []}
    assert gather_expressions([classes, *alone, classes]) == [classes, *grouped, classes]


def test_mdetr_layout_is_read(tmp_path):
    image = {"file_name": "a.jpg", "width": 50, "height": 40}
    content = {
        "images": [{**image, "id": 1, "caption": "ten"}, {**image, "id": 2, "caption": "king"}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 3]]},
            {"id": 6, "image_id": 2, "category_id": 1, "bbox": [5, 6, 7, 8], "tokens_positive": [[0, 4]]},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    path = _write(tmp_path, content)
    assert [record["categories"] for record in load_refexp(path, None)] == [["ten"], ["king"]]
    (grouped,) = load_refexp(path, None, group_by_picture=True)
    assert grouped["categories"] == ["ten", "king"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({**_ours(), "expressions": ["ring"]}, "entry 0 of 'expressions'"),
        ({**_ours(), "images": [{"id": 1}]}, "no referring expressions.*without id, file_name, height or width: 1"),
        ({"images": [{"id": 1}]}, "neither a list 'expressions' nor captions"),
        ({"images": [], "expressions": []}, "no referring expressions"),
    ],
)
def test_other_content_is_refused_with_the_record(tmp_path, content, sentence):
    with pytest.raises(CocoFormatError, match=sentence):
        load_refexp(_write(tmp_path, content), None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"caption": " . "}, "caption no prompt holds: 1 .first: expression 12, ' . ' contains no word"),
        ({"caption": "ring " * 254}, "caption no prompt holds: 1 .*at most 253"),
        ({"caption": None}, "caption no prompt holds: 1 .*'None' is no text"),
        ({"image_id": [1]}, r"picture that is listed: 1 .*expression 12, 'the left ring': \[1\]"),
        ({"image_id": 3}, "picture that is listed: 1 .*: 3"),
    ],
)
def test_an_expression_that_cannot_be_asked_for_is_counted_and_named(tmp_path, caplog, change, sentence):
    (record,) = load_refexp(_write(tmp_path, _ours(**change)), None)
    assert record["expression_ids"] == [11]
    assert re.search(sentence, caplog.text)


def test_ids_that_are_text_are_the_same_numbers_and_those_of_two_pictures_differ(tmp_path, caplog):
    content = _ours(image_id="1")
    content["images"].append({**content["images"][0], "file_name": "b.jpg"})
    records = load_refexp(_write(tmp_path, content), None)
    assert [(record["file_name"], record["image_id"]) for record in records] == [("a.jpg", 1)] * 2
    assert "with the id of another: 1 (first: picture 1, 'b.jpg')" in caplog.text


def test_a_folder_without_the_pictures_is_refused(tmp_path):
    path = _write(tmp_path, _ours())
    with pytest.raises(FileNotFoundError, match="no picture folder '.*nowhere'"):
        load_refexp(path, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="none of the first 2 pictures is in"):
        load_refexp(path, str(tmp_path))


@pytest.mark.parametrize(
    ("box", "warning"),
    [
        ([1, 2, 0, 3], "no area"),
        (["1", 2, 3, 4], "not four finite numbers"),
        (None, "not four finite numbers"),
        ([500, 500, 10, 10], "outside the picture"),
    ],
)
@pytest.mark.parametrize("grouped", [True, False])
def test_an_expression_without_a_usable_box_is_dropped_with_a_warning(tmp_path, caplog, box, warning, grouped):
    (record,) = load_refexp(_write(tmp_path, _ours(bbox=box)), None, group_by_picture=grouped)
    assert record["categories"] == ["the red star"] and record["expression_ids"] == [11]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0]
    assert f"{warning}: 1 (first: expression 12 of picture 1" in caplog.text
    assert "expressions without a usable box: 1" in caplog.text
    only_bad = _ours(bbox=box)
    del only_bad["expressions"][0]
    with pytest.raises(CocoFormatError, match="no referring expressions with a box"):
        load_refexp(_write(tmp_path, only_bad), None)


def test_a_box_that_stands_out_is_clipped(tmp_path, caplog):
    records = load_refexp(_write(tmp_path, _ours(bbox=[40, 30, 30, 30])), None)
    assert records[1]["annotations"][0]["bbox"] == [40, 30, 10, 10]
    assert "clipped boxes" in caplog.text


@pytest.mark.parametrize(("change", "kind"), [({"id": 11}, "was there already"), ({"id": [1]}, "no usable id")])
def test_ids_of_expressions_differ(tmp_path, caplog, change, kind):
    records = load_refexp(_write(tmp_path, _ours(**change)), None)
    assert [record["expression_ids"] for record in records] == [[11], [12]]
    assert caplog.text.count("renumbered expressions") == 1 and f"{kind}" in caplog.text


def test_expressions_without_ids_are_numbered_in_silence(tmp_path, caplog):
    content = _ours()
    for expression in content["expressions"]:
        del expression["id"]
    assert [record["expression_ids"] for record in load_refexp(_write(tmp_path, content), None)] == [[0], [1]]
    assert not caplog.records


def _mdetr(*words):
    image = {"id": 1, "file_name": "a.jpg", "width": 50, "height": 40, "caption": "the kings"}
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8]]
    annotations = [{"image_id": 1, "bbox": box, "tokens_positive": word} for box, word in zip(boxes, words)]
    return {"images": [image], "annotations": annotations, "categories": []}


def test_several_boxes_of_an_mdetr_entry_belong_to_one_expression(tmp_path):
    for grouped in (True, False):
        (record,) = load_refexp(_write(tmp_path, _mdetr([[4, 9]], [[4, 9]])), None, group_by_picture=grouped)
        assert record["categories"] == ["the kings"] and record["expression_ids"] == [1]
        assert [annotation["bbox"] for annotation in record["annotations"]] == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert {annotation["category_id"] for annotation in record["annotations"]} == {0}
    with pytest.raises(CocoFormatError, match="entry 1 .*phrase grounding"):
        load_refexp(_write(tmp_path, _mdetr([[0, 3]], [[4, 9]])), None)


@pytest.mark.parametrize("marked", [{"empty": True}, {"category_id": -1}, None])
def test_expressions_that_name_nothing_are_kept_where_they_may_occur(tmp_path, marked):
    content = _mdetr([[0, 9]], [[0, 9]])
    content["images"].append({**content["images"][0], "id": 2, "caption": "the aces"})
    if marked:
        content["annotations"].append({"image_id": 2, "bbox": [0, 0, 0, 0], "tokens_positive": [[0, 8]], **marked})
    path = _write(tmp_path, content)
    (record,) = load_refexp(path, None, group_by_picture=True, targets_optional=True)
    assert record["categories"] == ["the kings", "the aces"] and record["expression_ids"] == [1, 2]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 0]
    assert [record["categories"] for record in load_refexp(path, None)] == [["the kings"]]


def test_a_target_without_a_usable_box_is_no_expression_without_target(tmp_path):
    content = _ours(bbox=[1, 2, 0, 3])
    assert len(load_refexp(_write(tmp_path, content), None, targets_optional=True)) == 1
    named, empty = load_refexp(_write(tmp_path, _ours(bbox=None)), None, targets_optional=True)
    assert len(named["annotations"]) == 1 and empty["annotations"] == []
