import json
import pickle

from grounding_dino.data.datasets.odvg import OdvgReader, load_odvg, odvg_names, read_label_map, register_odvg
from grounding_dino.data.datasets.rows import PHRASES_EVALUATOR, RowError, RowReport

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

SIZE = {"height": 40, "width": 50}
NAMES = {0: "cat", 7: "dog"}


def detection(*instances, filename="a.png", **more):
    return {"filename": filename, **SIZE, "detection": {"instances": list(instances)}, **more}


def instance(label=0, category="cat", bbox=(1, 2, 11, 22), **more):
    return {"bbox": list(bbox), "label": label, "category": category, **more}


def grounding(caption, *regions, filename="a.png"):
    return {"filename": filename, **SIZE, "grounding": {"caption": caption, "regions": list(regions)}}


# ---------------------------------------------------------------------------------------------------- single rows


def test_a_detection_row_counts_classes_in_the_order_of_labels():
    record = OdvgReader("root", NAMES)(detection(instance(7), instance("0"), instance(None, "Dog", iscrowd=1)))
    assert record["file_name"] == "root/a.png" and (record["height"], record["width"]) == (40, 50)
    assert [annotation["category_id"] for annotation in record["annotations"]] == [1, 0, 1]
    assert [annotation["iscrowd"] for annotation in record["annotations"]] == [0, 0, 1]
    assert record["annotations"][0]["bbox"] == [1, 2, 10, 20]
    assert record["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert "categories" not in record


def test_names_without_labels_are_known_as_in_the_map_and_as_in_prompts():
    reader = OdvgReader("root", {0: "cat", 3: "tea_pot (old)"}, fixes={"cat": "house cat"})
    assert reader.class_names == ["house cat", "tea pot"]
    record = reader(detection(instance(None, "Tea_pot (old)"), instance(None, "tea pot"), instance(None, "cat")))
    assert [annotation["category_id"] for annotation in record["annotations"]] == [1, 1, 0]


def test_without_a_label_map_a_row_brings_its_own_categories():
    record = OdvgReader("root")(detection(instance(3, "dog"), instance(3, "a/b"), instance(5, "dog")))
    assert record["categories"] == ["dog", "a/b"]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 0]
    with pytest.raises(RowError, match="without a label map"):
        OdvgReader("root")(detection())
    assert OdvgReader("root", NAMES)(detection())["annotations"] == []


@pytest.mark.parametrize(
    ("names", "wrong", "kind"),
    [
        (NAMES, instance(3, "cat"), "labels that are not in the map"),
        (NAMES, instance(None, "bird"), "categories that are not in the map"),
        (NAMES, instance(None, None), "categories that are not in the map"),
        (None, instance(0, " "), "category without a name"),
        (NAMES, instance(bbox=(5, 5, 5, 9)), "no area"),
        (NAMES, instance(bbox=(9, 5, 5, 9)), "no area"),
        (NAMES, instance(bbox=(60, 5, 70, 9)), "outside the picture"),
        (NAMES, {"label": 0, "bbox": "all"}, "not four finite numbers"),
    ],
)
def test_objects_that_cannot_be_used_are_dropped_and_counted(names, wrong, kind):
    report = RowReport("x").at("rows.jsonl", 4)
    record = OdvgReader("root", names)(detection(instance(), wrong), report)
    assert len(record["annotations"]) == 1
    ((found, (count, example)),) = report.findings.items()
    assert kind in found and count == 1 and example.startswith("rows.jsonl:4, ")


def test_a_grounding_row_has_phrases_by_spans_or_by_words():
    row = grounding(
        "Two men and a dog",
        {"bbox": [1, 2, 11, 22], "phrase": "two men"},
        {"bbox": [[3, 3, 9, 9], [4, 4, 9, 9]], "phrase": ["a", "dog"], "tokens_positive": [[12, 13], [14, 17]]},
        {"bbox": [5, 5, 9, 9], "phrase": "Two men", "tokens_positive": [0, 7]},
    )
    record = OdvgReader("root")(row)
    assert record["phrases"] == [[(0, 7)], [(12, 13), (14, 17)]]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 1, 0]
    assert record["annotations"][2]["bbox"] == [4, 4, 5, 5]


@pytest.mark.parametrize("regions", [{}, {"regions": None}, {"regions": []}])
def test_a_grounding_row_without_regions_names_nothing(regions):
    row = {"file_name": "a.png", **SIZE, "grounding": {"caption": "no cat here", **regions}}
    record = OdvgReader("root")(row)
    assert record["phrases"] == [] and record["annotations"] == []


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (grounding("", {"bbox": [1, 2, 3, 4], "phrase": "cat"}), "not in its caption"),
        (grounding(""), "an empty caption"),
        (grounding("a cat", {"bbox": [1, 2, 3, 4], "tokens_positive": [[2, 9]]}), "a span outside its caption"),
        (grounding("a cat", {"bbox": [1, 2, 3, 4], "phrase": "dog"}), "a phrase that is not in its caption"),
        (grounding("a cat", {"bbox": [1, 2, 1, 4], "phrase": "cat"}), "no phrase with a usable box"),
        (grounding("a cat", "cat"), "'regions' is no list of objects"),
        ({"filename": "a.png", **SIZE}, "neither 'detection' nor 'grounding'"),
        ({**detection(), "detection": {"instances": {}}}, "'instances' is no list of objects"),
        (detection(filename=""), "a picture without a file name"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_by_kind(row, kind):
    with pytest.raises(RowError, match=kind):
        OdvgReader("root", None if "grounding" in row else NAMES)(row)


def test_a_row_of_both_kinds_is_detection_where_there_are_names():
    row = {**detection(instance()), **grounding("a cat", {"bbox": [1, 2, 3, 4], "phrase": "cat"})}
    assert "caption" not in OdvgReader("root", NAMES)(row)
    assert OdvgReader("root")(row)["caption"] == "a cat"


def test_masks_are_kept():
    polygon = [[1.0, 2.0, 9.0, 2.0, 9.0, 9.0]]
    runs = {"size": [40, 50], "counts": [100, 10, 1890]}
    record = OdvgReader("root", NAMES)(detection(instance(segmentation=polygon), instance(segmentation=runs)))
    assert record["annotations"][0]["segmentation"] == polygon
    assert isinstance(record["annotations"][1]["segmentation"]["counts"], bytes)  # packed, as pycocotools wants them


def test_readers_travel_to_worker_processes():
    row = detection(instance(7))
    assert pickle.loads(pickle.dumps(OdvgReader("root", NAMES)))(row) == OdvgReader("root", NAMES)(row)


# --------------------------------------------------------------------------------------------------------- names


def test_names_come_from_the_file_given_the_one_beside_or_the_rows(write_rows, tmp_path):
    path = write_rows([detection(instance(7, "dog")), detection(instance(2, "ox")), detection(instance(None, "ant"))])
    assert odvg_names(path) == {2: "ox", 7: "dog", 8: "ant"}
    (tmp_path / "label_map.json").write_text('{"7": "hound"}')
    assert odvg_names(path) == {7: "hound"}
    (tmp_path / "rows_label_map.json").write_text('["fish", "bird"]')
    assert odvg_names(path) == {0: "fish", 1: "bird"}
    (tmp_path / "other.json").write_text('{"1": "cow"}')
    assert odvg_names(path, str(tmp_path / "other.json")) == {1: "cow"}


def test_rows_that_contradict_one_another_in_their_names_are_refused(write_rows):
    path = write_rows([detection(instance(7, "dog")), detection(instance(7, "cat"))])
    with pytest.raises(RowError, match=rf"{path}:2: label 7 is 'cat', and 'dog' before"):
        odvg_names(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not readable as JSON"),
        ('{"a": "cat"}', "not all different whole numbers"),
        ('{"0": "cat", " 0": "dog"}', "not all different whole numbers"),
        ("{}", "without a name"),
        ('"cat"', "without a name"),
        ('{"0": " . "}', "label 0: the name ' . ' contains no word"),
        ('{"0": null}', "label 0: the name None is no text"),
    ],
)
def test_other_label_maps_are_refused(tmp_path, text, sentence):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(RowError, match=sentence):
        read_label_map(str(tmp_path / "map.json"))


def test_a_category_without_a_name_is_counted_and_its_objects_too(write_rows, tmp_path, pictures, caplog, new_name):
    path = write_rows([detection(instance(0), instance(1))])
    (tmp_path / "map.json").write_text('{"0": "cat", "1": ""}')
    (record,) = load_odvg(path, pictures, new_name, str(tmp_path / "map.json"))
    assert len(record["annotations"]) == 1 and MetadataCatalog.get(new_name).thing_classes == ["cat"]
    assert len(caplog.records) == 1
    assert "labels without a usable name: 1" in caplog.text and "labels that are not in the map: 1" in caplog.text
    with pytest.raises(RowError, match="without a usable name"):
        load_odvg(path, pictures, None, str(tmp_path / "map.json"), strict=True)


# ------------------------------------------------------------------------------------------------------ data sets


def test_a_file_with_broken_rows_gives_the_others_with_one_warning(write_rows, pictures, caplog):
    good = grounding("a cat", {"bbox": [1, 2, 11, 22], "phrase": "cat"})
    path = write_rows([good, '{"filename": ', grounding("  "), {**good, "filename": "b.png"}])
    records = load_odvg(path, pictures)
    assert [record["image_id"] for record in records] == ["a.png", "b.png"]
    (warning,) = caplog.messages
    assert f"(the line is not JSON): 1 (first: {path}:2" in warning
    assert f"(an empty caption): 1 (first: {path}:3" in warning
    with pytest.raises(RowError, match=rf"{path}:2"):
        load_odvg(path, pictures, strict=True)


def test_nothing_usable_is_an_error_at_start(write_rows, pictures):
    with pytest.raises(RowError, match="yields nothing: .*an empty caption"):
        load_odvg(write_rows([grounding(" ")]), pictures)
    with pytest.raises(RowError, match="yields nothing: it has no rows"):
        load_odvg(write_rows([]), pictures)


def test_classes_and_evaluator_follow_from_the_rows(write_rows, pictures, new_name):
    rows = [detection(instance(7, "dog"), image_id=5), detection(instance(0), filename="b.png", image_id=9)]
    register_odvg(new_name, write_rows(rows), pictures)
    records = DatasetCatalog.get(new_name)
    metadata = MetadataCatalog.get(new_name)
    assert metadata.thing_classes == ["cat", "dog"] and metadata.evaluator_type == "coco"
    assert [record["image_id"] for record in records] == [5, 9]
    with pytest.raises(ValueError, match="choose another name"):
        register_odvg(new_name, "x.jsonl", pictures)


def test_captions_are_scored_by_their_phrases(write_rows, pictures, new_name):
    region = {"bbox": [1, 2, 11, 22], "phrase": "cat"}
    load_odvg(write_rows([grounding("a cat", region), grounding("one cat", region)]), pictures, new_name)
    assert MetadataCatalog.get(new_name).evaluator_type == PHRASES_EVALUATOR


def test_detection_rows_among_captions_keep_all_names(write_rows, pictures):
    caption = grounding("a cat", {"bbox": [1, 2, 11, 22], "phrase": "cat"})
    records = load_odvg(write_rows([detection(instance(7, "dog"), instance()), caption]), pictures)
    assert records[0]["categories"] == ["cat", "dog"] and "categories" not in records[1]


def test_names_are_corrected_for_prompts_where_asked(write_rows, pictures, new_name):
    path = write_rows([detection(instance(0, "wild_bird (big)"), instance(1, "Bakset/Bag"))])
    load_odvg(path, pictures, new_name, fixes={"Bakset/Bag": "Basket/Bag"})
    assert MetadataCatalog.get(new_name).thing_classes == ["wild bird", "Basket/Bag"]


def test_a_folder_of_rows_is_read_in_order(write_rows, tmp_path, pictures):
    for name, file in (("b", "a.png"), ("a", "b.png")):
        write_rows([detection(instance(), filename=file)], f"folder/{name}.jsonl")
    (tmp_path / "folder" / "label_map.json").write_text(json.dumps({"0": "cat"}))
    records = load_odvg(str(tmp_path / "folder"), pictures)
    assert [record["image_id"] for record in records] == ["b.png", "a.png"]
