import json
import os
import pickle

from grounding_dino.data.datasets import CocoFormatError
from grounding_dino.data.datasets.described_json import main, read_scenarios

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

TEXTS = {1: "a dog", 2: "a dog without leash", 3: "a red ring"}
SENTENCES = {n: {"id": n, "raw_sent": text, "is_negative": n == 2, "anno_id": []} for n, text in TEXTS.items()}
GROUPS = {
    0: {"id": 0, "inner_sent_id": np.array([2, 1]), "img_id": [0, 1], "group_name": "dogs", "outer_sent_id": [3]},
    1: {"id": 1, "inner_sent_id": [3], "img_id": [2], "group_name": "rings"},
}


def _annotations(numbers):
    boxes = {(0, 1): [1, 2, 3, 4], (0, 2): [1, 2, 3, 4], (0, 3): [5, 6, 7, 8], (2, 3): [9, 9, 9, 9]}
    found = [(image, number, box) for (image, number), box in boxes.items() if number in numbers]
    return [
        {"id": i + 1, "image_id": image, "category_id": number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, number, box) in enumerate(found)
    ]


@pytest.fixture
def folder(data_root, write_picture):
    root = data_root / "d3"
    for name in ("d3_json", "d3_pkl"):
        (root / name).mkdir(parents=True)
    images = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in range(3)]
    for image in images:
        write_picture(root / "d3_images" / image["file_name"])
    for subset, numbers in {"full": [1, 2, 3], "pres": [1, 3], "abs": [2]}.items():
        content = {"images": images, "annotations": _annotations(numbers)}
        content["categories"] = [{"id": number, "name": TEXTS[number]} for number in numbers]
        (root / "d3_json" / f"d3_{subset}_annotations.json").write_text(json.dumps(content))
    for name, content in {"sentences": SENTENCES, "groups": GROUPS}.items():
        (root / "d3_pkl" / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return root


def test_pictures_are_asked_for_the_descriptions_of_their_scenario(folder, capsys):
    main([])
    assert "3 descriptions, 1 of them of absence, in 2 scenarios" in capsys.readouterr().out
    first, second, third = DatasetCatalog.get("d3_full")
    assert first["categories"] == ["a dog", "a dog without leash"] and first["description_ids"] == [1, 2]
    assert first["referring"] and second["categories"] == first["categories"]
    # What belongs to another scenario is not asked for, and so is no annotation of the record.
    assert [(a["category_id"], a["bbox"]) for a in first["annotations"]] == [(0, [1, 2, 3, 4]), (1, [1, 2, 3, 4])]
    assert third["categories"] == ["a red ring"] and third["annotations"][0]["category_id"] == 0
    metadata = MetadataCatalog.get("d3_full")
    assert metadata.absence_ids == {2} and metadata.evaluator_type == "d3"
    assert metadata.json_file == str(folder / "d3_json/d3_full_annotations.json")


def test_subsets_ask_for_the_same_and_score_their_part(folder):
    main([])
    for name, bases in (("d3_presence", {0}), ("d3_absence", {1})):
        first = DatasetCatalog.get(name)[0]
        assert first["description_ids"] == [1, 2]
        assert {annotation["category_id"] for annotation in first["annotations"]} == bases
        subset = {"d3_presence": "pres", "d3_absence": "abs"}[name]
        assert MetadataCatalog.get(name).json_file.endswith(f"d3_{subset}_annotations.json")


def test_every_description_can_be_asked_for(folder):
    main([])
    first, second, third = DatasetCatalog.get("d3_full_inter")
    assert all(record["description_ids"] == [1, 2, 3] for record in (first, second, third))
    assert [annotation["category_id"] for annotation in first["annotations"]] == [0, 1, 2]
    assert [annotation["category_id"] for annotation in third["annotations"]] == [2]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


def test_pickles_run_no_code(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "d3_pkl/groups.pkl").write_bytes(pickle.dumps({**GROUPS, 2: Hostile()}))
    with pytest.raises(CocoFormatError, match="not laid out as D3's"):
        main([])
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no pickle", "not readable as a pickle"),
        (b"", "not readable as a pickle"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({1: {"raw_sent": "a"}}), "not laid out as D3's .KeyError"),
    ],
)
def test_other_pickles_are_refused(folder, content, sentence):
    (folder / "d3_pkl/sentences.pkl").write_bytes(content)
    with pytest.raises(CocoFormatError, match=sentence):
        main([])


def test_a_missing_pickle_is_named(folder):
    (folder / "d3_pkl/sentences.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"sentences.pkl.*shikras/d-cube"):
        main([])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"descriptions": []}, "a group of .* has the description 1"),
        ({"groups": None}, "not in the form"),
        ({"descriptions": [{"id": 1, "text": "...", "absence": False}]}, "description 1 of .*no word"),
        ({"descriptions": [{"id": "1", "text": "a dog", "absence": False}]}, "no numeric id"),
    ],
)
def test_faulty_scenarios_are_refused(folder, change, sentence):
    main([])
    path = folder / "d3_json/d3_groups.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CocoFormatError, match=sentence):
        read_scenarios(str(path))


def test_scenarios_have_to_know_all_pictures_and_descriptions(folder):
    main([])
    path = folder / "d3_json/d3_groups.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "groups": content["groups"][:1]}))
    with pytest.raises(CocoFormatError, match="picture 2 of .* belongs to no scenario"):
        DatasetCatalog.get("d3_full")
    path.write_text(json.dumps({"descriptions": content["descriptions"][:2], "groups": content["groups"][:1]}))
    with pytest.raises(CocoFormatError, match="category 3 of .* is no description"):
        DatasetCatalog.get("d3_full")
