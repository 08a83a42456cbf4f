from grounding_dino.data.datasets.captions import Region, caption_record, check_spans, find_phrase, picture_facts
from grounding_dino.data.datasets.coco_cleaning import CleaningReport
from grounding_dino.data.datasets.rows import RowError
from grounding_dino.text.prompt import MAX_TOKENS, build_caption_prompt
from grounding_dino.text.tokenizer import build_tokenizer

import pytest

FACTS = {"file_name": "a.png", "image_id": 1, "height": 40, "width": 50}
BOX = [1, 2, 10, 10]


def test_regions_of_the_same_words_are_one_phrase_and_annotations_keep_their_order():
    regions = [Region([(6, 11)], [BOX]), Region([(0, 5)], [BOX]), Region([(6, 11)], [[3, 3, 5, 5]], {"iscrowd": 1})]
    record = caption_record(FACTS, "a cat a dog", regions)
    assert record["phrases"] == [[(6, 11)], [(0, 5)]]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 0]
    assert [annotation["iscrowd"] for annotation in record["annotations"]] == [0, 0, 1]


def test_a_caption_without_regions_names_nothing():
    record = caption_record(FACTS, "a cat", [])
    assert record["phrases"] == [] and record["annotations"] == []


def test_listed_phrases_come_first_with_or_without_a_box():
    record = caption_record(FACTS, "a cat a dog", [Region([(6, 11)], [BOX])], phrases=[[[0, 5]], [[6, 11]]])
    assert record["phrases"] == [[(0, 5)], [(6, 11)]] and record["annotations"][0]["category_id"] == 1


@pytest.mark.parametrize(
    ("caption", "spans", "kind"),
    [
        ("", [], "an empty caption"),
        (" . ", [], "an empty caption"),
        (None, [], "an empty caption"),
        ("a cat", [(0, 6)], "a span outside its caption"),
        ("a cat", [(-1, 3)], "a span outside its caption"),
        ("a cat", [(3, 3)], "a span outside its caption"),
        ("a , cat", [(2, 3)], "a span without a word"),
        ("a cat", [(0.0, 5.0)], "spans that are no pairs"),
        ("a cat", [], "spans that are no pairs"),
    ],
)
def test_other_captions_and_spans_are_refused_by_kind(caption, spans, kind):
    regions = [Region(spans, [BOX])] if kind != "an empty caption" else []
    with pytest.raises(RowError, match=kind):
        caption_record(FACTS, caption, regions)


@pytest.mark.parametrize("box", [[1, 2, 0, 5], [60, 2, 5, 5], [1, 2, float("nan"), 3], None])
def test_a_phrase_goes_with_its_last_box(box):
    report = CleaningReport("x")
    record = caption_record(FACTS, "a cat a dog", [Region([(0, 5)], [box]), Region([(6, 11)], [BOX, box])], report)
    assert record["phrases"] == [[(6, 11)]] and len(record["annotations"]) == 1
    assert sum(count for count, _ in report.findings.values()) == 2
    with pytest.raises(RowError, match="no phrase with a usable box"):
        caption_record(FACTS, "a cat", [Region([(0, 5)], [box])])


@pytest.mark.parametrize("ending", ["", ".", " and 猫"])
def test_a_long_caption_is_cut_between_words_to_what_a_prompt_holds(ending):
    words = [f"word{number}" for number in range(200)]  # two tokens each, or three
    caption, report = " ".join(words) + ending, CleaningReport("x")
    last = (caption.index("word199"), caption.index("word199") + 7)
    record = caption_record(FACTS, caption, [Region([(0, 5)], [BOX]), Region([last, (6, 11)], [BOX])], report)
    assert caption.startswith(record["caption"]) and caption[len(record["caption"]) - 1] == " "
    assert record["phrases"] == [[(0, 5)], [(6, 11)]]
    prompt = build_caption_prompt(record["caption"], build_tokenizer(), phrases=record["phrases"])
    assert MAX_TOKENS - 5 < len(prompt) <= MAX_TOKENS
    dropped = caption_record(FACTS, caption, [Region([(0, 5)], [BOX]), Region([last], [BOX])], report)
    assert dropped["phrases"] == [[(0, 5)]]
    assert {kind.split()[0] for kind in report.findings} == {"cut", "dropped"}


def test_names_that_just_fit_are_not_cut():
    caption = "a. " * 126 + "a."
    assert caption_record(FACTS, caption, [])["caption"] == caption
    assert len(build_tokenizer().encode(caption)) == MAX_TOKENS


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("cat", [(12, 15)]),  # not in "cats" or "tomcat"
        ("Two  CATS", [(0, 8)]),
        (["two cats", "cat"], [(0, 8), (12, 15)]),
        (["cat", "two"], [(12, 15), (0, 3)]),
    ],
)
def test_a_phrase_without_spans_is_its_first_whole_words(phrase, expected):
    assert find_phrase(phrase, "two cats, a cat, a tomcat, a cat") == expected


@pytest.mark.parametrize("phrase", ["dog", "at", "", [], None, [3]])
def test_a_phrase_that_is_not_in_the_caption_is_refused(phrase):
    with pytest.raises(RowError, match="not in its caption|without tokens_positive"):
        find_phrase(phrase, "two cats, a cat")


def test_one_pair_is_a_span_too_and_spans_are_in_order():
    assert check_spans([0, 5], "a cat a dog") == [(0, 5)]
    assert check_spans([[6, 11], [0, 5], [6, 11]], "a cat a dog") == [(0, 5), (6, 11)]


def test_facts_of_a_picture_take_the_spellings_that_files_have():
    row = {"filename": "a.png", "height": "40", "width": 50.0}
    assert picture_facts(row, "root") == {**FACTS, "file_name": "root/a.png", "image_id": "a.png"}
    assert picture_facts({**row, "file_name": "b.png", "image_id": 3}, "")["image_id"] == 3


@pytest.mark.parametrize(
    "row",
    [
        {"height": 4, "width": 5},
        {"file_name": " ", "height": 4, "width": 5},
        {"file_name": "a", "height": 0, "width": 5},
        {"file_name": "a", "height": "four", "width": 5},
        {"file_name": "a", "height": float("inf"), "width": 5},
        {"file_name": "a", "width": 5},
    ],
)
def test_a_picture_without_name_or_size_is_refused(row):
    with pytest.raises(RowError, match="a picture without"):
        picture_facts(row, "")
