import json

from grounding_dino.data.datasets.register_flickr30k import entity_types, load_phrase_grounding
from grounding_dino.data.datasets.rows import RowError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

CAPTION = "A man and a man wear red hats ."  # spans: A man 0-5, a man 10-15, red hats 21-29
SENTENCE = "[/EN#1/people A man] and [/EN#2/people a man] wear [/EN#3/clothing/other red hats] ."
BOXES = {1: [1, 2, 10, 20], 2: [30, 2, 10, 20], 3: [2, 2, 4, 4], 4: [31, 2, 4, 4]}


def _content(**more):
    words = {1: [[0, 5]], 2: [[10, 15]], 3: [[21, 29]], 4: [[21, 29]]}
    image = {
        **{"id": 5, "file_name": "36979.jpg", "height": "40", "width": "60", "caption": CAPTION},
        **{"dataset_name": "flickr", "sentence_id": 1, "original_img_id": 36979},
        "tokens_positive_eval": [[[0, 5]], [[10, 15]], [[21, 29]]],
    }
    annotations = [
        {"id": n, "image_id": 5, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0, "tokens_positive": words[n]}
        for n, box in BOXES.items()
    ]
    categories = [{"id": 1, "name": "object"}]
    return {"images": [image], "annotations": annotations, "categories": categories, **more}


@pytest.fixture
def write(data_root, write_picture):
    def files(content, split="val"):
        root = data_root / "flickr30k_entities"
        write_picture(root / "flickr30k_images/36979.jpg")
        path = root / f"final_flickr_separateGT_{split}.json"
        path.write_text(json.dumps(content))
        return path

    return files


@pytest.fixture
def images(data_root):
    return data_root / "flickr30k_entities/flickr30k_images"


def _boxes(record):
    return [(annotation["category_id"], annotation["bbox"]) for annotation in record["annotations"]]


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_splits_have_each_phrase_with_its_boxes(data_root, write, split):
    write(_content(), split)
    (record,) = DatasetCatalog.get(f"flickr30k_{split}")
    assert record["caption"] == CAPTION and record["image_id"] == 5
    assert (record["height"], record["width"]) == (40, 60)
    assert record["file_name"] == str(data_root / "flickr30k_entities/flickr30k_images/36979.jpg")
    assert record["phrases"] == [[(0, 5)], [(10, 15)], [(21, 29)]]
    assert _boxes(record) == [(0, BOXES[1]), (1, BOXES[2]), (2, BOXES[3]), (2, BOXES[4])]
    assert "phrase_types" not in record
    assert MetadataCatalog.get(f"flickr30k_{split}").evaluator_type == "flickr30k"


def test_types_of_phrases_come_from_the_sentences(data_root, write, caplog):
    write(_content())
    sentences = data_root / "flickr30k_entities/Sentences"
    sentences.mkdir()
    (sentences / "36979.txt").write_text(f"[/EN#0/notvisual It] rains .\n{SENTENCE}\n")
    (record,) = DatasetCatalog.get("flickr30k_val")
    assert record["phrase_types"] == [["people"], ["people"], ["clothing", "other"]]
    (sentences / "36979.txt").unlink()
    (record,) = DatasetCatalog.get("flickr30k_val")
    assert record["phrase_types"] == [[], [], []] and "types of phrases are not known: 1" in caplog.text


def test_characters_of_entities_are_those_of_the_plain_sentence():
    found = entity_types(SENTENCE)
    assert {CAPTION[start:end]: types for (start, end), types in found.items()} == {
        "A man": ["people"],
        "a man": ["people"],
        "red hats": ["clothing", "other"],
    }
    assert entity_types("nobody is here .") == {}


def test_training_splits_say_what_boxes_belong_to(write):
    content = _content()
    content["annotations"][0]["tokens_positive"] = [[0, 5], [10, 15]]  # one box of both phrases
    write(content, "train")
    (record,) = DatasetCatalog.get("flickr30k_train")
    assert record["phrases"][record["annotations"][0]["category_id"]] == [(0, 5), (10, 15)]
    write(content)
    (record,) = DatasetCatalog.get("flickr30k_val")
    assert _boxes(record)[:3] == [(0, BOXES[1]), (1, BOXES[1]), (1, BOXES[2])]


def test_without_phrases_to_evaluate_those_of_the_boxes_are_taken(write, images):
    content = _content()
    del content["images"][0]["tokens_positive_eval"]
    (record,) = load_phrase_grounding(str(write(content)), str(images))
    assert record["phrases"] == [[(0, 5)], [(10, 15)], [(21, 29)]]


def test_a_sentence_without_a_phrase_is_left_out_and_a_faulty_one_counted(write, images, caplog):
    content = _content()
    none = {**content["images"][0], "id": 6, "tokens_positive_eval": []}
    outside = {**content["images"][0], "id": 7, "tokens_positive_eval": [[[0, 99]]]}
    content["images"] += [none, outside]
    path = str(write(content))
    assert [record["image_id"] for record in load_phrase_grounding(path, str(images))] == [5]
    assert "entry 2 of 'images'" in caplog.text and "a span outside its caption" in caplog.text
    with pytest.raises(RowError, match="span outside its caption"):
        load_phrase_grounding(path, str(images), strict=True)
    with pytest.raises(RowError):
        load_phrase_grounding(str(write(_content(images=[none]))), str(images))
