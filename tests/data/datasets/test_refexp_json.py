import json

from grounding_dino.data.datasets import CocoFormatError, load_refexp

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
    single = load_refexp(path, "root")
    assert [record["categories"] for record in single] == [["the red star"], ["the left ring"]]
    assert [record["expression_ids"] for record in single] == [[11], [12]]
    assert [record["annotations"][0]["category_id"] for record in single] == [0, 0]
    (grouped,) = load_refexp(path, "root", group_by_picture=True)
    assert grouped["categories"] == ["the red star", "the left ring"]
    assert [annotation["category_id"] for annotation in grouped["annotations"]] == [0, 1]
    assert grouped["file_name"].endswith("a.jpg") and grouped["referring"] is True


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
    assert [record["categories"] for record in load_refexp(path, "root")] == [["ten"], ["king"]]
    (grouped,) = load_refexp(path, "root", group_by_picture=True)
    assert grouped["categories"] == ["ten", "king"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (_ours(caption=" . "), "expression 1 of .*no caption"),
        (_ours(image_id=3), "expression 1 of .*no picture"),
        (_ours(bbox=[1, 2, 0, 3]), "expression 1 of .*no box"),
        ({"images": [{"id": 1}]}, "neither a list 'expressions' nor captions"),
        ({"images": [], "expressions": []}, "no referring expressions"),
    ],
)
def test_other_content_is_refused_with_the_record(tmp_path, content, sentence):
    with pytest.raises(CocoFormatError, match=sentence):
        load_refexp(_write(tmp_path, content), "root")
