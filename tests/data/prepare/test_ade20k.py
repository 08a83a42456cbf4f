"""ADE20K in the form of its downloads, on one picture a split."""

import json
import re
import tarfile
import zipfile

from grounding_dino.data.prepare import ade20k
from grounding_dino.data.segmentation_maps import read_panoptic_map, read_semantic_map

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

QUIET = ["--quiet", "--workers", "1"]
WALL, BED, FLAG = 1, 8, 150  # labels of semantic maps
BED_INSTANCE, FLAG_INSTANCE = 1, 100  # things of instance maps
LABELS = np.array([[0, WALL, WALL, BED, BED, BED], [FLAG, FLAG, WALL, BED, BED, WALL]], dtype=np.uint8)
THINGS = np.array([[0, 0, 0, 1, 1, 0], [100, 0, 0, 1, 1, 1]], dtype=np.uint8)
NUMBERS = np.array([[0, 0, 0, 1, 2, 0], [7, 0, 0, 1, 2, 2]], dtype=np.uint8)


@pytest.fixture
def ade(data_root):
    """Pictures, labels and instance maps, below the folder of the archive; `write(instances)` writes the latter."""
    root = data_root / "ADEChallengeData2016"
    for folder, split in (("training", "train"), ("validation", "val")):
        for kind in ("images", "annotations", "annotations_instance"):
            (root / kind / folder).mkdir(parents=True)
        stem = f"ADE_{split}_00000001"
        Image.fromarray(np.zeros((2, 6, 3), dtype=np.uint8)).save(root / f"images/{folder}/{stem}.jpg")
        Image.fromarray(LABELS).save(root / f"annotations/{folder}/{stem}.png")
        maps = np.stack([THINGS, NUMBERS, np.zeros_like(THINGS)], axis=-1)
        Image.fromarray(maps).save(root / f"annotations_instance/{folder}/{stem}.png")
    return root


def test_all_sets_can_be_used_afterwards(ade, capsys):
    assert ade20k.main(QUIET) == 0
    output = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"ade20k_sem_seg_{split}: 1 pictures, 1 semantic maps, 150 classes" in output
        assert f"ade20k_instance_{split}: 1 pictures, 3 objects, 100 classes" in output
        assert f"ade20k_panoptic_{split}: 1 pictures, 4 segments, 150 classes" in output


def test_labels_are_counted_from_0(ade, capsys):
    ade20k.main(QUIET)
    (record,) = DatasetCatalog.get("ade20k_sem_seg_val")
    assert read_semantic_map(record["sem_seg_file_name"]).tolist() == [[255, 0, 0, 7, 7, 7], [149, 149, 0, 7, 7, 0]]


def test_instances_have_masks_and_the_classes_of_the_list(ade, capsys):
    ade20k.main(QUIET)
    (record,) = DatasetCatalog.get("ade20k_instance_val")
    assert record["image_id"] == "ADE_val_00000001"
    names = MetadataCatalog.get("ade20k_instance_val").thing_classes
    assert [names[item["category_id"]] for item in record["annotations"]] == ["bed", "bed", "flag"]
    for item, number in zip(record["annotations"], (1, 2, 7)):
        assert np.array_equal(coco_mask.decode(item["segmentation"]), NUMBERS == number)
    assert record["annotations"][1]["bbox"] == [4, 0, 2, 2]
    (ids,) = {a["category_id"] for a in json.loads((ade / "ade20k_instance_val.json").read_text())["annotations"]} - {7}
    assert ids == 149  # places in the list of 150, as others' files have them


def test_panoptic_maps_have_instances_over_stuff_and_nothing_where_a_thing_has_no_instance(ade, capsys):
    ade20k.main(QUIET)
    (record,) = DatasetCatalog.get("ade20k_panoptic_val")
    segments = {segment["id"]: segment for segment in record["segments_info"]}
    ids = read_panoptic_map(record["pan_seg_file_name"], segments)
    classes = np.vectorize(lambda number: segments[number]["category_id"] if number else -1)(ids)
    assert classes.tolist() == [[-1, 0, 0, 7, 7, -1], [149, -1, 0, 7, 7, 7]]
    assert [segment["isthing"] for segment in record["segments_info"]] == [False, True, True, True]
    assert all(segments[number]["area"] == (ids == number).sum() for number in segments)
    assert record["sem_seg_file_name"].endswith("annotations_detectron2/validation/ADE_val_00000001.png")


def test_the_truth_scores_100(ade, scores_of_truth, capsys):
    ade20k.main(QUIET)
    scores = scores_of_truth("ade20k_panoptic_val")
    found = [scores["panoptic_seg"]["PQ"], scores["sem_seg"]["mIoU"], scores["bbox"]["AP"], scores["segm"]["AP"]]
    assert found == pytest.approx([100] * 4)


def test_archives_may_lie_in_the_folder(ade, data_root, capsys):
    with zipfile.ZipFile(data_root / "a.zip", "w") as archive:
        for kind in ("images", "annotations"):
            for path in sorted((ade / kind).rglob("*.*")):
                archive.write(path, path.relative_to(data_root))
                path.unlink()
    (data_root / "a.zip").rename(ade / "ADEChallengeData2016.zip")
    with tarfile.open(ade / "annotations_instance.tar", "w") as archive:
        for path in sorted((ade / "annotations_instance").rglob("*.png")):
            archive.add(path, path.relative_to(ade))
            path.unlink()
    assert ade20k.main(QUIET) == 0
    assert "ade20k_panoptic_val: 1 pictures" in capsys.readouterr().out


def test_without_instance_maps_there_are_semantic_ones(ade, capsys):
    for folder in ("training", "validation"):
        (ade / "annotations_instance" / folder).rename(ade / folder)
    assert ade20k.main(QUIET) == 0
    output = capsys.readouterr().out
    assert "no instances and no panoptic maps are made of val" in output
    assert "ade20k_sem_seg_val: 1 pictures" in output and "ade20k_instance_val" not in output


@pytest.mark.parametrize(
    ("kind", "pixels", "sentence"),
    [
        ("annotations", np.full((2, 6), 151, np.uint8), r"has the label 151; ADE20K's labels are 0 to 150"),
        (
            "annotations_instance",
            np.full((2, 6, 3), 101, np.uint8),
            r"an instance of the thing 101; there are 1 to 100",
        ),
        ("annotations_instance", np.full((3, 6, 3), 1, np.uint8), r"sizes must agree"),
        (
            "annotations_instance",
            np.stack([THINGS, np.ones_like(THINGS), THINGS], axis=-1),
            r"an instance of the thing 0",
        ),
        (
            "annotations_instance",
            np.stack([np.maximum(THINGS, 2), np.full_like(THINGS, 4), THINGS], axis=-1),
            r"the instance 4 of .*ADE_train_00000001.png has pixels of several things",
        ),
    ],
)
def test_maps_of_another_form_are_named(ade, kind, pixels, sentence, capsys):
    Image.fromarray(pixels).save(ade / kind / "training/ADE_train_00000001.png")
    with pytest.raises(SystemExit):
        ade20k.main(QUIET)
    captured = " ".join(capsys.readouterr().err.split())
    assert re.search(sentence, captured)


def test_an_empty_folder_says_where_the_files_come_from(data_root, capsys):
    with pytest.raises(SystemExit):
        ade20k.main(QUIET)
    assert "ADEChallengeData2016.zip" in capsys.readouterr().err
