import json
import os
import re

import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.build import load_records
from grounding_dino.data.datasets import CocoFormatError
from grounding_dino.data.datasets.groups import dataset_groups
from grounding_dino.data.datasets.label_names import prompt_name
from grounding_dino.data.datasets.register_odinw import choose_few_shot, dataset_name, odinw
from grounding_dino.data.mappers.text_detection import TextDetectionMapper

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

CAPTIONS = {"mm": "mm_grounding_dino_swin-t", "gdino": "grounding_dino_swin-t", "glip": "glip_b_c_t"}
BLANK = "  "  # a class of ChessPieces has no name in the published list


@pytest.fixture(scope="module")
def published(reference):
    return json.loads((reference / "mmdet" / "odinw_prompts.json").read_text())


def _prompt(entry):
    facts = odinw()["sets"][entry]
    return facts.get("caption") or ". ".join(prompt_name(name) for name in facts["names"]) + "."


def _same(caption):
    return " ".join(caption.split()).replace(" .", ".")


@pytest.mark.parametrize("benchmark", ["odinw13", "odinw35"])
@pytest.mark.parametrize("family", ["", *CAPTIONS])
def test_folders_and_prompts_are_the_published_ones(benchmark, family, published):
    # A group of its own is there only where a family asks by captions.
    members = odinw()["groups"].get(f"{benchmark}_{family}", odinw()["groups"][benchmark])
    assert len(members) == len(published[benchmark])
    for entry, expected in zip(members, published[benchmark]):
        facts = odinw()["sets"][entry]
        assert expected["root"] == f"data/odinw/{facts['folder']}/"
        assert (facts.get("layout") == "flat") == expected["annotation"].startswith("val_")
        used = [o for o in expected.get("caption_override", ()) if CAPTIONS.get(family) in o["used_by"]]
        caption = used[0]["caption"] if used else expected["caption"]
        if BLANK in expected["classes"]:
            caption = caption.replace(" . black", "bishop. black")
        assert _same(_prompt(entry)) == _same(caption)
        if "spans" in facts:
            assert facts["spans"] == used[0]["name_char_spans"]
            assert facts["names"] == [caption[start:end] for start, end in facts["spans"]]


def test_no_class_is_without_a_name():
    assert all(re.search(r"\w", prompt_name(name)) for facts in odinw()["sets"].values() for name in facts["names"])


# ---------------------------------------------------------------------------------------------- loading by name


def _write(write_coco, data_root, entry, part, pictures=1, names=None):
    facts = odinw()["sets"][entry]
    flat = facts.get("layout") == "flat"
    folder = f"odinw/{facts['folder']}" + ("" if flat else f"/{part}")
    stem = f"{part.replace('valid', 'val')}_" if flat else ""
    listed = [(f"{i}.jpg", f"{folder}/{i}.jpg", {}) for i in range(pictures)]
    json_file = f"{folder}/{stem}annotations_without_background.json"
    return json_file, write_coco(json_file, names or [f"file {i}" for i in range(len(facts["names"]))], listed)


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("val", "valid"), ("test", "test")])
@pytest.mark.parametrize("entry", ["aquarium", "pistols", "boggle_boards", "cottontail_rabbits", "drone_control"])
def test_a_split_is_loaded_under_the_published_class_names(entry, split, part, data_root, write_coco):
    json_file, _ = _write(write_coco, data_root, entry, part)
    name = dataset_name(entry, split)
    (record,) = load_records([name])
    assert record["file_name"] == os.path.join(data_root, os.path.dirname(json_file), "0.jpg")
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == [prompt_name(n) for n in odinw()["sets"][entry]["names"]]
    assert metadata.original_names[0] == "file 0"
    assert metadata.evaluator_type == "coco"


def test_pascal_voc_is_tested_on_its_validation_split_as_the_benchmark_says(data_root, write_coco):
    _write(write_coco, data_root, "pascal_voc", "valid")
    assert (
        load_records(["odinw_pascal_voc_test"])[0]["file_name"]
        == load_records(["odinw_pascal_voc_val"])[0]["file_name"]
    )


def test_the_class_without_a_name_is_asked_for_by_the_name_it_once_had(data_root, write_coco):
    _write(write_coco, data_root, "chess_pieces", "valid", names=[BLANK, *map(str, range(12))])
    load_records(["odinw_chess_pieces_val"])
    assert MetadataCatalog.get("odinw_chess_pieces_val").thing_classes[:2] == ["bishop", "black bishop"]


def test_files_with_a_background_class_are_refused(data_root, write_coco):
    _write(write_coco, data_root, "pothole", "valid", names=["potholes", "pothole"])
    with pytest.raises(CocoFormatError, match=r"1 classes \(pothole\), but its file lists 2: 'potholes', 'pothole'"):
        DatasetCatalog.get("odinw_pothole_val")


def test_a_caption_entry_asks_by_the_published_sentence(data_root, write_coco, tiny_cfg):
    _write(write_coco, data_root, "packages", "valid")
    records = load_records(["odinw_packages_caption_val"])
    (asked,) = [TextDetectionMapper(tiny_cfg, is_train=False)(record) for record in records]
    assert asked["caption"] == "there is a package on the porch."
    ((start, end),) = asked["phrases"]
    assert asked["caption"][start:end] == "package"
    assert records[0]["annotations"][0]["category_id"] == 0


# ------------------------------------------------------------------------------------------------------- few-shot


def _records(*classes):
    return [{"annotations": [{"category_id": c, "iscrowd": 0} for c in group]} for group in classes]


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_few_shot_takes_pictures_until_every_class_has_enough(shots):
    records = _records(*([[0]] * 20), *([[1]] * 4), *([[0, 2]] * 20), [])
    chosen = choose_few_shot(records, shots, seed=3)
    counts = [sum(any(a["category_id"] == c for a in r["annotations"]) for r in chosen) for c in range(3)]
    assert counts[1] == min(shots, 4)
    assert counts[2] == shots
    assert shots <= counts[0] <= 2 * shots
    assert all(record["annotations"] for record in chosen)


def test_few_shot_depends_on_the_seed_alone_and_keeps_the_order_of_the_file():
    records = _records(*([[0]] * 50))
    numbered = [{**record, "n": n} for n, record in enumerate(records)]
    chosen = [[r["n"] for r in choose_few_shot(numbered, 5, seed)] for seed in (3, 3, 30)]
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert chosen[0] != chosen[2]


def test_few_shot_names_choose_from_train_unless_the_benchmarks_choice_is_there(data_root, write_coco, caplog):
    json_file, content = _write(write_coco, data_root, "aquarium", "train", pictures=40)
    names = ["odinw_aquarium_train_1shot", "odinw_aquarium_train_3shot", "odinw_aquarium_train_1shot_seed30"]
    chosen = {name: [record["image_id"] for record in load_records([name])] for name in names}
    assert [len(ids) for ids in chosen.values()] == [7, 21, 7]
    assert chosen[names[0]] != chosen[names[2]]
    published = {**content, "images": content["images"][3:4], "annotations": content["annotations"][3:4]}
    own_choice = data_root / os.path.dirname(json_file) / "fewshot_train_shot1_seed30.json"
    own_choice.write_text(json.dumps(published))
    assert [record["image_id"] for record in load_records([names[2]])] == [4]
    assert MetadataCatalog.get(names[2]).json_file == str(own_choice)


def test_every_group_consists_of_registered_sets():
    groups = dataset_groups()
    assert {"odinw13", "odinw35", "odinw13_train", "odinw35_mm_test", "odinw13_train_3shot_seed300"} <= set(groups)
    assert len(groups["odinw13"]) == 13 and len(groups["odinw35"]) == 35
    assert all(name in DatasetCatalog for members in groups.values() for name in members)
    assert groups["odinw13"] == groups["odinw13_val"]
