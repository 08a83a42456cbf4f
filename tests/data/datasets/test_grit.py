import pickle

from grounding_dino.data.datasets.grit import GritReader, load_grit, register_grit
from grounding_dino.data.datasets.rows import RowError, RowLeftOut

import pytest
from detectron2.data import DatasetCatalog

CAPTION = "a wire hanger with a paper cover"
COVER, HANGER = [0.5, 0.25, 1.0, 0.75], [0.0, 0.0, 0.5, 0.5]


def row(**more):
    return {
        "key": "000373938",
        "caption": CAPTION,
        "width": 100,
        "height": 40,
        "noun_chunks": [[19, 32, *COVER, 0.8], [0, 13, *HANGER, 0.6]],
        "ref_exps": [[19, 32, *COVER, 0.8], [0, 32, *HANGER, 0.6]],
        **more,
    }


def test_noun_chunks_are_phrases_with_boxes_in_pixels():
    record = GritReader("root")(row())
    assert record["file_name"] == "root/00037/000373938.jpg"
    assert record["phrases"] == [[(19, 32)], [(0, 13)]]
    assert [annotation["bbox"] for annotation in record["annotations"]] == [[50, 10, 50, 20], [0, 0, 50, 20]]


def test_expressions_or_both_with_one_phrase_a_box():
    assert GritReader("root", phrases="ref_exps")(row())["phrases"] == [[(19, 32)], [(0, 32)]]
    other = [2, 6, 0.1, 0.1, 0.2, 0.2, 0.9]
    shorter = [0, 18, *HANGER, 0.6]
    both = GritReader("root", phrases="both")(
        row(noun_chunks=[*row()["noun_chunks"], other], ref_exps=[shorter, *row()["ref_exps"]])
    )
    assert both["phrases"] == [[(0, 32)], [(19, 32)], [(2, 6)]]
    assert len(both["annotations"]) == 3


def test_boxes_below_the_least_score_are_left_out_which_is_no_fault():
    assert GritReader("root", min_score=0.7)(row())["phrases"] == [[(19, 32)]]
    with pytest.raises(RowLeftOut, match="no box with a score of 0.9"):
        GritReader("root", min_score=0.9)(row())


def test_numbers_of_parquet_files_are_read():
    record = GritReader("root")(row(noun_chunks=[[19.0, 32.0, *COVER, 0.8]], file_name="x.jpg"))
    assert record["phrases"] == [[(19, 32)]] and record["file_name"] == "root/x.jpg"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"caption": ""}, "an empty caption"),
        ({"noun_chunks": [[19, 99, *COVER, 0.8]]}, "a span outside its caption"),
        ({"noun_chunks": [[0, 13, *COVER]]}, "'noun_chunks' is no list"),
        ({"noun_chunks": [[0.5, 13, *COVER, 0.8]]}, "'noun_chunks' is no list"),
        ({"noun_chunks": [[0, 13, 10**400, 0.5, 0.5, 0.6, 0.8]]}, "'noun_chunks' is no list"),
        ({"noun_chunks": {}}, "'noun_chunks' is no list"),
        ({"noun_chunks": [[0, 13, 0.5, 0.5, 0.5, 0.6, 0.8]]}, "no phrase with a usable box"),
        ({"width": None}, "a picture without a size"),
        ({"key": None}, "a picture without a file name"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_by_kind(change, kind):
    with pytest.raises(RowError, match=kind) as caught:
        GritReader("root")(row(**change))
    assert not isinstance(caught.value, RowLeftOut)


@pytest.mark.parametrize("parameters", [{"phrases": "verbs"}, {"min_score": 1.5}])
def test_wrong_parameters_are_refused_at_once(parameters, new_name):
    with pytest.raises(ValueError, match="GRIT"):
        register_grit(new_name, "x.jsonl", "images", **parameters)
    assert new_name not in DatasetCatalog


def test_a_file_of_rows_is_a_data_set(write_rows, pictures, new_name, caplog):
    path = write_rows([row(file_name="a.png"), row(caption=""), row(file_name="b.png")])
    register_grit(new_name, path, pictures, min_score=0.7)
    records = DatasetCatalog.get(new_name)
    assert [record["image_id"] for record in records] == ["a.png", "b.png"]
    assert all(len(record["annotations"]) == 1 for record in records)
    assert f"an empty caption): 1 (first: {path}:2" in caplog.text
    with pytest.raises(RowError, match="yields nothing"):
        load_grit(path, pictures, min_score=1.0)


def test_readers_travel_to_worker_processes():
    assert pickle.loads(pickle.dumps(GritReader("root", 0.7)))(row()) == GritReader("root", 0.7)(row())
