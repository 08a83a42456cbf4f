import json
import os
import shutil

import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.build import load_records
from grounding_dino.data.convert import convert
from grounding_dino.data.datasets.register_coco_sets import OBJECTS365_V2_ABSENT, explain_missing_files

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

# data set, annotations, names in the file, (file_name in the json, path), names in prompts
FAMILIES = [
    (
        "objects365_v1_{split}",
        "objects365v1/objects365_{split}.json",
        ["person", "hotair balloon"],
        ("obj365_000001.jpg", "objects365v1/{split}/obj365_000001.jpg"),
        ["person", "hot air balloon"],
    ),
    (
        "objects365_v2_{split}",
        "objects365v2/annotations/zhiyuan_objv2_{split}.json",
        ["Person", "Moniter/TV"],
        ("images/v1/patch8/objects365_v1_00420917.jpg", "objects365v2/{split}/patch8/objects365_v1_00420917.jpg"),
        ["Person", "Monitor/TV"],
    ),
    (
        "v3det_{split}",
        "V3Det/annotations/v3det_2023_v1_{split}.json",
        ["soccer_ball", "gazania"],
        ("images/n07745046/21_371.jpg", "V3Det/images/n07745046/21_371.jpg"),
        ["soccer ball", "gazania"],
    ),
    (
        "openimages_v6_{split}",
        "OpenImages/annotations/openimages_v6_{split}.json",
        ["Human eye", "Cart"],
        ("000002b66c9c498e.jpg", "OpenImages/{folder}/000002b66c9c498e.jpg"),
        ["Human eye", "Cart"],
    ),
    (
        "coco_2017_train_norefval",
        "coco/annotations/instances_train2017_norefval.json",
        ["person", "hair drier"],
        ("000000000009.jpg", "coco/train2017/000000000009.jpg"),
        ["person", "hair drier"],
    ),
]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("family", FAMILIES, ids=[family[0] for family in FAMILIES])
def test_a_set_in_its_published_layout_is_loaded_by_name(family, split, data_root, write_coco):
    where = {"split": split, "folder": "validation" if split == "val" else split}
    name, json_file, names, (file_name, path), prompts = family
    name, json_file, path = name.format(**where), json_file.format(**where), path.format(**where)
    write_coco(json_file, names, [(file_name, path, {})])
    (record,) = load_records([name])
    assert record["file_name"] == os.path.join(data_root, path)
    assert [item["category_id"] for item in record["annotations"]] == [0]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == prompts
    assert metadata.original_names == names
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file == str(data_root / json_file)


def test_pictures_that_no_archive_of_objects365_has_are_left_out_in_silence(data_root, write_coco, caplog):
    absent = sorted(OBJECTS365_V2_ABSENT)
    pictures = [(f"images/v1/{name}", f"objects365v2/train/{name}", {}) for name in [*absent, "patch0/a.jpg"]]
    write_coco("objects365v2/annotations/zhiyuan_objv2_train.json", ["Person"], pictures)
    for name in absent:
        (data_root / "objects365v2/train" / name).unlink()
    (record,) = load_records(["objects365_v2_train"])
    assert record["file_name"].endswith("patch0/a.jpg")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_objects365_v2_is_converted_to_rows_with_the_names_of_its_archives(data_root, write_coco):
    pictures = [("images/v2/patch0/a.jpg", "objects365v2/train/patch0/a.jpg", {})]
    stem = "objects365v2/annotations/zhiyuan_objv2_train"
    write_coco(f"{stem}.json", ["Moniter/TV"], pictures)
    convert(str(data_root / f"{stem}.json"), str(data_root / f"{stem}_odvg.jsonl"), "coco", "odvg")
    (listed,), (row,) = load_records(["objects365_v2_train"]), load_records(["objects365_v2_train_odvg"])
    for key in ("file_name", "height", "width", "annotations"):
        assert row[key] == listed[key]
    classes = [MetadataCatalog.get(f"objects365_v2_train{form}").thing_classes for form in ("", "_odvg")]
    assert classes == [["Monitor/TV"]] * 2


def test_a_public_set_is_scored_by_its_own_file_even_if_that_was_repaired(data_root, write_coco, caplog):
    content = write_coco(
        "V3Det/annotations/v3det_2023_v1_val.json", ["fox"], [("images/a.jpg", "V3Det/images/a.jpg", {})]
    )
    content["annotations"][0]["bbox"] = [50, 30, 30, 30]
    json_file = data_root / "V3Det/annotations/v3det_2023_v1_val.json"
    json_file.write_text(json.dumps(content))
    (record,) = load_records(["v3det_val"])
    assert record["annotations"][0]["bbox"] == [50, 30, 10, 10]
    assert "clipped boxes" in caplog.text
    assert MetadataCatalog.get("v3det_val").json_file == str(json_file)
    assert not (data_root.parent / "cache").exists()


def test_a_set_of_detectron2_is_read_by_detectron2_and_says_what_it_misses(data_root, write_coco):
    name, json_file, images = "test_coco_of_detectron2", data_root / "coco/a.json", data_root / "coco/val2017"
    register_coco_instances(name, {}, str(json_file), str(images))
    try:
        explain_missing_files(name, "`make it`")
        with pytest.raises(FileNotFoundError, match="a.json'; `make it`"):
            DatasetCatalog.get(name)
        write_coco("coco/a.json", ["cat"], [("1.jpg", "coco/val2017/1.jpg", {})])
        assert [record["file_name"] for record in load_records([name])] == [str(images / "1.jpg")]
        (images / "1.jpg").unlink()
        images.rmdir()
        with pytest.raises(FileNotFoundError, match="val2017'; `make it`"):
            DatasetCatalog.get(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_folder_of_a_set_of_detectron2_is_looked_up_when_it_is_used(data_root, write_coco, monkeypatch):
    name, content = "test_moved_coco_of_detectron2", ("coco/a.json", ["cat"], [("1.jpg", "coco/val2017/1.jpg", {})])
    register_coco_instances(name, {}, str(data_root / "coco/a.json"), str(data_root / "coco/val2017"))
    try:
        explain_missing_files(name, "`make it`")
        for folder in (data_root, data_root / "moved", data_root):
            monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
            write_coco(*content)
            if folder != data_root:
                shutil.copytree(data_root / "coco", folder / "coco")
            (record,) = load_records([name])
            assert record["file_name"] == str(folder / "coco/val2017/1.jpg")
            assert MetadataCatalog.get(name).json_file == str(folder / "coco/a.json")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
