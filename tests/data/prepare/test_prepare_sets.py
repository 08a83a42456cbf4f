"""Each script on a tiny set in the layout of the downloads: afterwards the registered names load."""

import json
import re
import shutil
import zipfile

from grounding_dino.data.datasets.register_odinw import odinw
from grounding_dino.data.prepare import coco, lvis, objects365, v3det
from grounding_dino.data.prepare import odinw as prepare_odinw
from grounding_dino.data.segmentation_maps import read_semantic_map, write_panoptic_map

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

QUIET = ["--quiet"]


def _pack(archive, *paths, base):
    """Put files into an archive and away from their place."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in paths:
            for found in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if found.is_file():
                    file.write(found, found.relative_to(base))
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def coco_files(data_root, write_coco):
    write_coco(
        "coco/annotations/instances_train2017.json",
        ["person", "dog"],
        [(f"{number:012d}.jpg", f"coco/train2017/{number:012d}.jpg", {"id": number}) for number in (9, 25, 30)],
    )
    return data_root


def test_coco_archives_are_unpacked_where_the_names_look(coco_files, capsys):
    folder = coco_files / "coco"
    _pack(folder / "train2017.zip", folder / "train2017", base=folder)
    _pack(folder / "annotations_trainval2017.zip", folder / "annotations", base=folder)
    assert coco.main([*QUIET, "--no-check"]) == 0
    assert (folder / "annotations/instances_train2017.json").is_file()
    assert len(list((folder / "train2017").iterdir())) == 3


def test_pictures_of_referring_expressions_are_taken_out_of_coco(coco_files, capsys):
    folder = coco_files / "coco/mdetr_annotations"
    folder.mkdir()
    for name, number in (("finetune_refcoco+_testA.json", 25), ("finetune_refcoco_train.json", 9)):
        image = {"id": 1, "file_name": f"COCO_train2014_{number:012d}.jpg"}
        (folder / name).write_text(json.dumps({"images": [image]}))
    coco.main([*QUIET, "--without-refexp"])
    assert "1 pictures taken out of train2017, 2 left" in capsys.readouterr().out
    records = DatasetCatalog.get("coco_2017_train_norefval")
    assert [record["image_id"] for record in records] == [9, 30]
    assert [len(record["annotations"]) for record in records] == [1, 1]


def test_without_files_of_referring_expressions_none_are_guessed(coco_files, capsys):
    with pytest.raises(SystemExit):
        coco.main([*QUIET, "--without-refexp"])
    assert "mdetr_annotations" in capsys.readouterr().err


PANOPTIC_IDS = np.array([[0, 300, 300], [5, 5, 70000]])


@pytest.fixture
def panoptic_val(data_root, write_panoptic):
    """A person (segments 5 and 300) on a rug, in val2017."""
    categories = [{"id": 1, "name": "person", "isthing": 1}, {"id": 200, "name": "rug-merged", "isthing": 0}]
    places = ("coco/annotations/panoptic_val2017.json", "coco/val2017", "coco/panoptic_val2017")
    return write_panoptic(*places, {"000000000139": (PANOPTIC_IDS, {5: 1, 300: 1, 70000: 200})}, categories)


PANOPTIC = [*QUIET, "--panoptic", "--workers", "1"]


def test_semantic_maps_of_coco_have_the_classes_of_panoptic_ones(panoptic_val, data_root, capsys):
    folder = data_root / "coco"
    _pack(folder / "annotations/panoptic_val2017.zip", folder / "panoptic_val2017", base=folder)
    _pack(folder / "panoptic_annotations_trainval2017.zip", folder / "annotations", base=folder)
    assert coco.main(PANOPTIC) == 0
    output = capsys.readouterr().out
    assert "coco_2017_val_panoptic_with_sem_seg: 1 pictures, 3 segments, 133 classes" in output
    (record,) = DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert read_semantic_map(record["sem_seg_file_name"]).tolist() == [[255, 0, 0], [0, 0, 132]]


def test_a_panoptic_map_of_other_segments_is_named(panoptic_val, data_root, capsys):
    write_panoptic_map(data_root / "coco/panoptic_val2017/000000000139.png", PANOPTIC_IDS + 1)
    with pytest.raises(SystemExit):
        coco.main(PANOPTIC)
    assert re.search(r"000000000139.png' has pixels of the segment 1,", capsys.readouterr().err)


def test_panoptic_annotations_that_are_absent_are_asked_for(data_root, capsys):
    with pytest.raises(SystemExit):
        coco.main(PANOPTIC)
    assert "panoptic_annotations_trainval2017.zip" in capsys.readouterr().err


def test_minival_is_the_part_of_lvis_val_in_cocos_val(data_root, write_coco, capsys):
    pictures = [
        ("a.jpg", f"coco/{part}/{part}.jpg", {"coco_url": f"http://x/{part}/{part}.jpg"})
        for part in ("train2017", "val2017")
    ]
    write_coco("lvis/lvis_v1_val.json", ["ax", "bow_(weapon)"], pictures)
    folder = data_root / "lvis"
    _pack(folder / "lvis_v1_val.json.zip", folder / "lvis_v1_val.json", base=folder)
    assert lvis.main(QUIET) == 0  # though train is not there
    output = capsys.readouterr().out
    assert "minival has 1 pictures" in output
    assert "lvis_v1_minival: 1 pictures, 1 objects, 2 classes" in output
    assert "lvis_v1_train: there is no" in output
    (record,) = DatasetCatalog.get("lvis_v1_minival")
    assert record["file_name"].endswith("val2017/val2017.jpg")


def test_another_file_is_no_lvis(data_root, write_coco, capsys):
    write_coco("lvis/lvis_v1_val.json", ["ax"], [("a.jpg", "coco/val2017/a.jpg", {})])
    with pytest.raises(SystemExit):
        lvis.main(QUIET)
    assert "has no picture of COCO's val2017" in capsys.readouterr().err


def test_patches_of_objects365_come_side_by_side(data_root, write_coco, capsys):
    folder = data_root / "objects365v2"
    name = "images/v1/patch8/objects365_v1_1.jpg"
    write_coco(
        "objects365v2/annotations/zhiyuan_objv2_val.json",
        ["Campel"],
        [(name, "objects365v2/val/patch8/objects365_v1_1.jpg", {})],
    )
    _pack(folder / "val/images/v1/patch8.zip", folder / "val/patch8", base=folder / "val")
    (folder / "val/images/v2/patch16").mkdir(parents=True)
    assert objects365.main(QUIET) == 0
    assert "objects365_v2_val: 1 pictures, 1 objects, 1 classes" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "val").iterdir()) == ["images", "patch16", "patch8"]
    assert MetadataCatalog.get("objects365_v2_val").thing_classes == ["Camel"]


def test_a_patch_that_is_there_twice_is_no_reason_to_lose_one(tmp_path):
    for place in ("patch3", "images/v1/patch3"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(FileExistsError, match="are the same patch"):
        objects365.gather_patches(tmp_path)


def test_objects365_version_1_is_checked_in_its_own_folder(data_root, write_coco, capsys):
    write_coco("objects365v1/objects365_train.json", ["person"], [("a.jpg", "objects365v1/train/a.jpg", {})])
    assert objects365.main([*QUIET, "--version", "1"]) == 0
    assert "objects365_v1_train: 1 pictures" in capsys.readouterr().out


def test_v3det_is_unpacked_and_checked(data_root, write_coco, capsys):
    write_coco("V3Det/annotations/v3det_2023_v1_val.json", ["fox"], [("images/n1/a.jpg", "V3Det/images/n1/a.jpg", {})])
    _pack(data_root / "V3Det/00008.zip", data_root / "V3Det/images", base=data_root / "V3Det")
    assert v3det.main(QUIET) == 0
    assert "v3det_val: 1 pictures, 1 objects, 1 classes" in capsys.readouterr().out


def test_archives_of_odinw_are_unpacked_and_what_is_missing_is_named(data_root, write_coco, capsys):
    folder = odinw()["sets"]["raccoons"]["folder"]
    write_coco(
        f"odinw/{folder}/valid/annotations_without_background.json",
        ["raccoons"],
        [("a.jpg", f"odinw/{folder}/valid/a.jpg", {})],
    )
    _pack(data_root / "odinw/Raccoon.zip", data_root / "odinw/Raccoon", base=data_root / "odinw")
    assert prepare_odinw.main([*QUIET, "--benchmark", "odinw13"]) == 0
    output = capsys.readouterr().out
    assert "odinw_raccoons_val: 1 pictures, 1 objects, 1 classes" in output
    assert output.count("there is no") == 3 * 13 - 1


@pytest.mark.parametrize("module", [lvis, objects365, v3det, prepare_odinw], ids=lambda module: module.__name__)
def test_a_folder_without_anything_ends_in_words_and_a_failure(module, data_root, capsys):
    try:
        code = module.main(QUIET)
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert code
    assert "there is no" in captured.out + captured.err
