import json

from grounding_dino.data.datasets.mdetr import holds_referring_expressions, load_mdetr, register_mdetr
from grounding_dino.data.datasets.rows import RowError

import pytest
from detectron2.data import DatasetCatalog


def sentence(number=1, caption="two men and a dog", **more):
    # Flickr30k's files write sizes as text
    return {"id": number, "file_name": "a.png", "height": "40", "width": "50", "caption": caption, **more}


def boxed(spans, bbox=(1, 2, 10, 20), image_id=1, **more):
    return {"image_id": image_id, "bbox": list(bbox), "tokens_positive": spans, "category_id": 1, **more}


@pytest.fixture
def write(tmp_path):
    def build(images, annotations):
        path = tmp_path / "mdetr.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
        return str(path)

    return build


def test_boxes_belong_to_the_words_that_they_mark(write, pictures):
    annotations = [
        boxed([[12, 17]]),
        boxed([[0, 7]], (3, 3, 5, 5), iscrowd=1),
        boxed([[0, 7]]),
        boxed([[4, 7], [14, 17]]),
    ]
    (record,) = load_mdetr(write([sentence(tokens_negative=[[0, 17]])], annotations), pictures)
    assert record["caption"] == "two men and a dog" and record["image_id"] == 1 and record["height"] == 40
    assert record["phrases"] == [[(12, 17)], [(0, 7)], [(4, 7), (14, 17)]]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 1, 2]
    assert [annotation["iscrowd"] for annotation in record["annotations"]] == [0, 1, 0, 0]


def test_all_phrases_of_a_sentence_are_known_where_it_lists_them(write, pictures):
    image = sentence(tokens_positive_eval=[[[0, 7]], [[12, 17]]])
    (record,) = load_mdetr(write([image], [boxed([[12, 17]])]), pictures)
    assert record["phrases"] == [[(0, 7)], [(12, 17)]] and record["annotations"][0]["category_id"] == 1


def test_a_sentence_without_boxes_names_nothing(write, pictures):
    empty = boxed([[0, 7]], (0, 0, 0, 0), image_id=2, empty=True)  # as in gRefCOCO
    records = load_mdetr(write([sentence(1), sentence(2), sentence(3)], [boxed([[0, 7]]), empty]), pictures)
    assert [record["phrases"] for record in records] == [[[(0, 7)]], [], []]


@pytest.mark.parametrize(
    ("images", "annotations", "kind"),
    [
        ([sentence(caption=" ")], [], "an empty caption"),
        ([sentence(caption=None)], [], "an empty caption"),
        ([sentence()], [boxed([[0, 70]])], "a span outside its caption"),
        ([sentence()], [boxed(None)], "a sentence whose boxes have no words"),
        ([sentence()], [boxed([[0, 7]], (1, 2, 0, 3))], "no phrase with a usable box"),
        ([sentence(height=0)], [], "a picture without a size"),
        ([sentence(number=None)], [], "a sentence without an id"),
    ],
)
def test_entries_that_cannot_be_used_are_counted_by_kind_with_their_place(
    write, pictures, caplog, images, annotations, kind
):
    good, its_box = sentence(100), boxed([[0, 7]], image_id=100)
    path = write([good, *images], [its_box, *annotations])
    assert [record["image_id"] for record in load_mdetr(path, pictures)] == [100]
    assert len(caplog.records) == 1 and kind in caplog.text and f"{path}, entry 1 of 'images'" in caplog.text
    with pytest.raises(RowError, match=kind):
        load_mdetr(path, pictures, strict=True)
    with pytest.raises(RowError, match="yields nothing"):
        load_mdetr(write(images, annotations), pictures)


def test_boxes_without_words_or_sentence_are_counted(write, pictures, caplog):
    load_mdetr(write([sentence()], [boxed([[0, 7]]), boxed([]), boxed([[0, 7]], image_id=9)]), pictures)
    assert "boxes without words" in caplog.text and "sentences that are not listed" in caplog.text


def test_a_second_entry_of_an_id_is_no_sentence_about_nothing(write, pictures, caplog):
    """Its boxes cannot be told from the first one's, so without them it would say that nothing is in the picture."""
    (record,) = load_mdetr(write([sentence(), sentence(caption="a dog")], [boxed([[0, 7]])]), pictures)
    assert record["caption"] == "two men and a dog" and len(record["annotations"]) == 1
    assert "a sentence with the id of another): 1" in caplog.text


def test_ids_of_another_type_are_the_same_and_strange_ones_are_counted(write, pictures, caplog):
    images = [sentence("1"), sentence(["x"])]
    (record,) = load_mdetr(write(images, [boxed([[0, 7]], image_id=1), boxed([[0, 7]], image_id=[1])]), pictures)
    assert len(record["annotations"]) == 1
    assert "a sentence without an id): 1" in caplog.text and "annotation None of image_id [1]" in caplog.text


def test_registered_files_are_read_when_they_are_used(write, pictures, new_name):
    register_mdetr(new_name, write([sentence()], [boxed([[0, 7]])]), pictures)
    assert len(DatasetCatalog.get(new_name)) == 1
    with pytest.raises(ValueError, match="choose another name"):
        register_mdetr(new_name, "x.json", pictures)


@pytest.mark.parametrize(
    ("names", "spans", "expected"),
    [
        ((), [[[0, 7]], [[0, 7]]], True),
        ((), [[[0, 7]], [[12, 17]]], False),
        (("refcoco+", "refcoco"), [[[0, 7]], [[12, 17]]], True),
        (("grefcoco",), [[[0, 7]]], True),
        (("flickr",), [[[0, 7]]], False),
        (("mixed", "refcoco"), [[[0, 7]]], False),
    ],
)
def test_files_of_expressions_are_told_from_files_of_sentences(names, spans, expected):
    images = [sentence(number, dataset_name=name) for number, name in enumerate(names)] or [sentence()]
    content = {"images": images, "annotations": [boxed(words) for words in spans]}
    assert holds_referring_expressions(content) is expected
    assert holds_referring_expressions({"images": [], "expressions": []})
