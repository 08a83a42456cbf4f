"""What a conversion there and back keeps, and what it says that it lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grounding_dino.data.convert import FORMATS, convert
from grounding_dino.data.convert.sources import SOURCES, mdetr_source
from grounding_dino.data.convert.targets import TARGETS
from grounding_dino.data.convert.texts import NameSentences
from grounding_dino.data.datasets import load_mdetr, load_odvg, load_refexp
from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.rows import RowError
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import pytest
from PIL import Image

Content = dict[str, Any]

COCO: Content = {
    "images": [
        {"id": 70, "file_name": "a.png", "height": 400, "width": 500},
        {"id": 30, "file_name": "sub/b.png", "height": 400, "width": 500},
        {"id": 50, "file_name": "c.png", "height": 400, "width": 500},
    ],
    "annotations": [
        {"id": 9, "image_id": 70, "category_id": 90, "bbox": [473.07, 0.1, 20.66, 33.3], "area": 12.5, "iscrowd": 0},
        {
            **{"id": 4, "image_id": 30, "category_id": 3, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 1},
            "segmentation": {"size": [400, 500], "counts": [402, 40, 199558]},  # as COCO writes crowds
        },
        {
            **{"id": 5, "image_id": 70, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 700, "iscrowd": 0},
            "segmentation": [[10, 20, 40, 20, 40, 60]],
        },
        {"id": 6, "image_id": 70, "category_id": 90, "bbox": [0.3, 0.7, 1.1, 2.2], "area": 2.42, "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "Red Fox"}, {"id": 3, "name": "dog"}, {"id": 17, "name": "tea/pot"}],
}
MDETR: Content = {
    "images": [
        {
            **{"id": 5, "file_name": "a.png", "height": 400, "width": 500, "original_img_id": 700},
            **{"caption": "A Man and a red dog", "tokens_negative": [[0, 19]], "dataset_name": "flickr"},
        },
        {"id": 6, "file_name": "a.png", "height": 400, "width": 500, "original_img_id": 700, "caption": "a man."},
        {"id": 8, "file_name": "b.png", "height": 400, "width": 500, "original_img_id": 900, "caption": "nothing"},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 2, 30, 40], "tokens_positive": [[0, 5]]},
        {"id": 2, "image_id": 5, "category_id": 1, "bbox": [5, 6, 7, 8], "tokens_positive": [[10, 11], [12, 19]]},
        {"id": 3, "image_id": 5, "category_id": 1, "bbox": [9, 2, 3.5, 4.25], "tokens_positive": [[0, 5]]},
        {"id": 4, "image_id": 6, "category_id": 1, "bbox": [1, 2, 30, 40], "tokens_positive": [[0, 5]]},
    ],
    "categories": [{"id": 1, "name": "object"}],
}
REFEXP: Content = {
    "images": [{"id": 1, "file_name": "a.png", "height": 400, "width": 500}],
    "expressions": [
        {"id": 11, "image_id": 1, "caption": "the red star", "bbox": [1, 2, 3, 4]},
        {"id": 12, "image_id": 1, "caption": "the left ring", "bbox": [5, 6, 7, 8]},
    ],
}


@pytest.fixture
def chain(tmp_path: Path):
    """`chain(content, "coco", "odvg", "coco")`: the path of the last file."""

    def run(content: Content, *formats: str, **options: Any) -> str:
        path = str(tmp_path / f"0.{formats[0]}")
        Path(path).write_text(json.dumps(content))
        for number, (source, target) in enumerate(zip(formats, formats[1:]), 1):
            output = str(tmp_path / f"{number}.{'jsonl' if target == 'odvg' else 'json'}")
            convert(path, output, source, target, **options)
            path = output
        return path

    return run


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def rows(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def by_name(content: Content) -> dict[Any, tuple[Any, ...]]:
    """Annotation id -> everything that has to stay; category ids are numbered anew, so names stand for them."""
    names = {category["id"]: category["name"].lower() for category in content["categories"]}
    return {
        a["id"]: (a["image_id"], names[a["category_id"]], a["bbox"], a["area"], a["iscrowd"], a.get("segmentation"))
        for a in content["annotations"]
    }


# ----------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("between", ["odvg", "mdetr"])
def test_coco_comes_back_with_ids_boxes_crowds_masks_and_pictures(chain, between):
    back = read(chain(COCO, "coco", between, "coco"))
    assert by_name(back) == by_name(COCO)
    assert sorted(back["images"], key=lambda i: i["id"]) == sorted(COCO["images"], key=lambda i: i["id"])
    # The ids of categories do not come back: they are counted from 1, in their order.
    names = ["dog", "tea/pot", "Red Fox"]
    assert [category["id"] for category in back["categories"]] == [1, 2, 3]
    assert [category["name"] for category in back["categories"]] == (
        names if between == "odvg" else [name.lower() for name in names]
    )


def test_coco_through_odvg_and_mdetr_and_back_is_the_same(chain):
    back = read(chain(COCO, "coco", "odvg", "mdetr", "coco"))
    assert by_name(back) == by_name(COCO)


def test_mdetr_comes_back_from_odvg_with_sentences_spans_and_boxes(chain):
    back = read(chain(MDETR, "mdetr", "odvg", "mdetr"))
    for key in ("id", "file_name", "height", "width", "caption", "original_img_id"):
        assert [image[key] for image in back["images"]] == [image[key] for image in MDETR["images"]]
    assert [image["dataset_name"] for image in back["images"]] == ["flickr", "mixed", "mixed"]

    def boxes(content: Content) -> list[Any]:
        return sorted((a["image_id"], a["bbox"], a["tokens_positive"]) for a in content["annotations"])

    assert boxes(back) == boxes(MDETR)  # the ids of annotations are numbered anew, and boxes go by phrases


def test_odvg_rows_of_grounding(chain):
    path = chain(MDETR, "mdetr", "odvg")
    first, second, third = rows(path)
    assert first["filename"] == "a.png" and first["grounding"]["caption"] == "A Man and a red dog"
    assert first["grounding"]["regions"] == [
        {"bbox": [[1, 2, 31, 42], [9, 2, 12.5, 6.25]], "phrase": "A Man", "tokens_positive": [[0, 5]]},
        {"bbox": [5, 6, 12, 14], "phrase": ["a", "red dog"], "tokens_positive": [[10, 11], [12, 19]]},
    ]
    assert len(second["grounding"]["regions"]) == 1 and third["grounding"]["regions"] == []
    assert not Path(path.replace(".jsonl", "_label_map.json")).exists()


def test_odvg_rows_of_detection_count_labels_from_0(chain):
    path = chain(COCO, "coco", "odvg")
    assert read(path.replace(".jsonl", "_label_map.json")) == {"0": "dog", "1": "tea/pot", "2": "Red Fox"}
    first, _, third = rows(path)
    assert first["detection"]["instances"][0] == {
        **{"bbox": [473.07, 0.1, 493.73, 33.4], "label": 2, "category": "Red Fox"},
        **{"id": 9, "area": 12.5},
    }
    assert third["detection"] == {"instances": []}


def test_phrases_become_classes_and_sentences_of_a_picture_one_entry(chain, caplog):
    content = read(chain(MDETR, "mdetr", "coco"))
    assert [category["name"] for category in content["categories"]] == ["a man", "a red dog"]
    assert [image["id"] for image in content["images"]] == [700, 900]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"]] == [
        (700, 1, [1, 2, 30, 40]),
        (700, 2, [5, 6, 7, 8]),
        (700, 1, [9, 2, 3.5, 4.25]),
    ]
    assert "1 boxes that several sentences of a picture give the same phrase" in caplog.text


def test_phrases_beside_rows_of_class_names_are_classes_behind_those(tmp_path):
    facts = {"height": 40, "width": 50}
    instance = {"bbox": [1, 2, 9, 9], "label": 1, "category": "Dog"}
    regions = [
        {"bbox": [3, 4, 9, 9], "phrase": phrase, "tokens_positive": [span]}
        for phrase, span in (("a bus", [0, 5]), ("dog", [10, 13]))
    ]
    written = [
        {"filename": "a.png", **facts, "detection": {"instances": [instance]}},
        {"filename": "b.png", **facts, "grounding": {"caption": "a bus and dog", "regions": regions}},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    (tmp_path / "label_map.json").write_text(json.dumps(["cat", "Dog"]))
    convert(str(tmp_path / "rows.jsonl"), str(tmp_path / "coco.json"), "odvg", "coco")
    content = read(str(tmp_path / "coco.json"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert list(names.values()) == ["cat", "Dog", "a bus"]
    assert [names[annotation["category_id"]] for annotation in content["annotations"]] == ["Dog", "a bus", "Dog"]


# ------------------------------------------------------------------------------------------- referring expressions


@pytest.mark.parametrize("between", ["odvg", "mdetr"])
def test_expressions_come_back_with_ids_and_boxes(chain, between):
    assert read(chain(REFEXP, "refexp", between, "refexp")) == REFEXP


def test_expressions_in_mdetr_form_are_read_as_expressions(chain):
    records = load_refexp(chain(REFEXP, "refexp", "mdetr"), None)
    assert [record["expression_ids"] for record in records] == [[11], [12]]


def test_sentences_of_several_boxes_are_no_expressions_of_ours(chain, caplog):
    content = read(chain(MDETR, "mdetr", "refexp"))
    assert [expression["caption"] for expression in content["expressions"]] == ["a man."]
    assert "2 sentences that do not name exactly one box" in caplog.text


# -------------------------------------------------------------------------------------------- sentences of names


def test_sentences_of_names_have_the_tokens_of_category_prompts(chain):
    (first, *_) = mdetr_source(chain(COCO, "coco", "mdetr"), None, None, True).records
    assert first["caption"] == "dog. tea/pot. Red Fox."
    tokenizer = build_tokenizer()
    sentence = build_caption_prompt(first["caption"], tokenizer, phrases=first["phrases"])
    (prompt,) = build_category_prompts(["dog", "tea/pot", "Red Fox"], tokenizer)
    for part in ("input_ids", "position_ids", "attention_ranges", "token_spans"):
        assert getattr(sentence, part) == getattr(prompt, part)


@pytest.mark.parametrize(
    ("mode", "captions"),
    [
        ("present", ["dog. Red Fox.", "dog."]),  # and none for the picture without an object
        ("all", ["dog. tea/pot. Red Fox."] * 3),
        ("auto", ["dog. tea/pot. Red Fox."] * 3),
    ],
)
def test_which_names_are_listed(chain, mode, captions):
    assert [image["caption"] for image in read(chain(COCO, "coco", "mdetr", names=mode))["images"]] == captions


def test_long_lists_are_split_at_what_a_prompt_holds():
    names = [f"thing number{index}" for index in range(150)]
    record = {"image_id": 7, "annotations": [{"category_id": 140, "bbox": [1, 2, 3, 4]}, {"category_id": 2}]}
    chunks = list(NameSentences(names, "all")(record))
    assert len(chunks) == len(build_category_prompts(names, build_tokenizer())) > 1
    assert sum(len(chunk["phrases"]) for chunk in chunks) == 150
    assert [len(chunk["annotations"]) for chunk in chunks] == [1, *[0] * (len(chunks) - 2), 1]
    for chunk in chunks:
        for annotation in chunk["annotations"]:
            ((start, stop),) = chunk["phrases"][annotation["category_id"]]
            assert chunk["caption"][start:stop] in ("thing number140", "thing number2")
    (only,) = NameSentences(names, "auto")(record)
    assert only["caption"] == "thing number2. thing number140."


def test_names_that_are_one_to_the_model_are_written_once():
    record = {"image_id": 7, "annotations": [{"category_id": 2}, {"category_id": 0}]}
    (sentence,) = NameSentences(["dog", "cat", "Dog"], "all")(record)
    assert sentence["caption"] == "dog. cat."
    assert [annotation["category_id"] for annotation in sentence["annotations"]] == [0, 0]


# ---------------------------------------------------------------------------------------------------- bad input


def test_what_odvg_cannot_say_is_counted(chain, tmp_path):
    source = chain(COCO, "coco", "mdetr")
    result = convert(source, str(tmp_path / "x.jsonl"), "mdetr", "odvg")
    assert result.entries == 3
    assert {what.split(",")[0]: count for what, count in result.lost.items()} == {
        "crowd boxes": 1,
        "masks": 1,
        "phrases without a box": 7,
    }


def test_the_file_to_convert_is_not_overwritten(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(COCO))
    with pytest.raises(ValueError, match="is the file to convert itself"):
        convert(str(path), f"{tmp_path}/./x.json", "coco", "odvg")
    assert read(path) == COCO


def test_bad_rows_are_left_out_with_a_warning_or_stop_the_conversion(chain, tmp_path, caplog):
    path = chain(COCO, "coco", "odvg")
    with open(path, "a") as file:
        file.write("{broken\n")
    output = tmp_path / "back.json"
    assert convert(path, str(output), "odvg", "coco").entries == 3
    assert f"{path}:4" in caplog.text
    with pytest.raises(RowError, match=f"{path}:4"):
        convert(path, str(tmp_path / "strict.json"), "odvg", "coco", strict=True)
    assert not (tmp_path / "strict.json").exists() and not list(tmp_path.glob("*.partial"))


def test_nothing_to_convert_leaves_no_file(tmp_path):
    (tmp_path / "x.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(str(tmp_path / "x.jsonl"), str(tmp_path / "y.json"), "odvg", "mdetr")
    with pytest.raises(CocoFormatError, match="no pictures"):
        (tmp_path / "x.json").write_text(json.dumps({**COCO, "images": []}))
        convert(str(tmp_path / "x.json"), str(tmp_path / "y.jsonl"), "coco", "odvg")
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", "x.json"}


def test_pictures_that_are_not_there_are_left_out(chain, tmp_path, caplog):
    path, pictures = chain(MDETR, "mdetr", "odvg"), tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"")
    result = convert(path, str(tmp_path / "x.json"), "odvg", "mdetr", images=str(pictures))
    assert result.entries == 2 and result.lost["pictures that are not in the folder"] == 1
    with pytest.raises(FileNotFoundError, match="no picture folder"):
        convert(path, str(tmp_path / "x.json"), "odvg", "mdetr", images=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("formats", "options", "sentence"),
    [
        (("coco", "yolo"), {}, "unknown format 'yolo'"),
        (("coco", "coco"), {}, "both formats are coco"),
        (("coco", "mdetr"), {"names": "some"}, "unknown choice of names 'some'"),
        (("coco", "refexp"), {}, "class names, which are no referring expressions"),
    ],
)
def test_conversions_that_do_not_exist_are_refused(chain, formats, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        chain(COCO, *formats, **options)


@pytest.mark.parametrize("target", [name for name in FORMATS if name != "mdetr"])
def test_converted_files_are_read_by_the_data_sets(chain, tmp_path, target):
    Image.new("RGB", (500, 400)).save(tmp_path / "a.png")
    path = chain(MDETR, "mdetr", target, "mdetr")
    assert load_mdetr(path, str(tmp_path))
    if target == "odvg":
        assert [len(record["phrases"]) for record in load_odvg(str(tmp_path / "1.jsonl"), str(tmp_path))] == [2, 1, 0]


def test_the_formats_of_the_command_line_are_those_that_can_be_read_and_written() -> None:
    assert set(FORMATS) == set(SOURCES) == set(TARGETS)
