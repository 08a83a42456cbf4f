"""Cityscapes in the form of its downloads, on one picture a split."""

import re
import zipfile

from grounding_dino.data.prepare import cityscapes
from grounding_dino.data.segmentation_maps import read_panoptic_map, read_semantic_map

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

QUIET = ["--quiet", "--workers", "1"]
# out of roi 3, road 7, sky 23; persons 24 with numbers, a group of cars 26 without, a caravan 29 is not evaluated
INSTANCES = np.array([[3, 7, 7, 24000, 24001, 24001], [23, 23, 26, 26, 29000, 24001]], dtype=np.uint16)
LABELS = np.where(INSTANCES < 1000, INSTANCES, INSTANCES // 1000).astype(np.uint8)
TRAIN_IDS = [[255, 0, 0, 11, 11, 11], [10, 10, 13, 13, 255, 11]]
STEMS = {"train": "ulm_000000_000019", "val": "frankfurt_000001_000294"}


@pytest.fixture
def cities(data_root):
    """Pictures, label maps and instance maps (of 16 bits), as the archives have them."""
    root = data_root / "cityscapes"
    for split, stem in STEMS.items():
        city = stem.split("_")[0]
        pictures, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        Image.fromarray(np.zeros((2, 6, 3), dtype=np.uint8)).save(pictures / f"{stem}_leftImg8bit.png")
        Image.fromarray(LABELS).save(labels / f"{stem}_gtFine_labelIds.png")
        Image.fromarray(INSTANCES).save(labels / f"{stem}_gtFine_instanceIds.png")
        Image.fromarray(np.zeros((2, 6, 4), dtype=np.uint8)).save(labels / f"{stem}_gtFine_color.png")
    return root


def test_all_sets_can_be_used_afterwards(cities, capsys):
    assert cityscapes.main(QUIET) == 0
    output = capsys.readouterr().out
    for split in STEMS:
        assert f"cityscapes_fine_sem_seg_{split}: 1 pictures, 1 semantic maps, 19 classes" in output
        assert f"cityscapes_fine_instance_{split}: 1 pictures, 3 objects, 8 classes" in output
        assert f"cityscapes_fine_panoptic_{split}: 1 pictures, 5 segments, 19 classes" in output


def test_semantic_maps_are_train_ids(cities, capsys):
    cityscapes.main(QUIET)
    (record,) = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    assert record["image_id"] == STEMS["val"]
    assert record["file_name"].endswith("val/frankfurt/frankfurt_000001_000294_leftImg8bit.png")
    assert read_semantic_map(record["sem_seg_file_name"]).tolist() == TRAIN_IDS


def test_instances_are_counted_things_and_crowds(cities, capsys):
    cityscapes.main(QUIET)
    (record,) = DatasetCatalog.get("cityscapes_fine_instance_val")
    names = MetadataCatalog.get("cityscapes_fine_instance_val").thing_classes
    found = [(names[item["category_id"]], item["iscrowd"]) for item in record["annotations"]]
    assert found == [("car", 1), ("person", 0), ("person", 0)]
    for item, number in zip(record["annotations"], (26, 24000, 24001)):
        assert np.array_equal(coco_mask.decode(item["segmentation"]), number == INSTANCES)
    assert DatasetCatalog.get("cityscapes_fine_instance_seg_val") == [record]


def test_panoptic_maps_keep_the_numbers_of_instance_maps(cities, capsys):
    cityscapes.main(QUIET)
    (record,) = DatasetCatalog.get("cityscapes_fine_panoptic_val")
    segments = {segment["id"]: segment for segment in record["segments_info"]}
    ids = read_panoptic_map(record["pan_seg_file_name"], segments)
    assert np.array_equal(ids, np.where(np.isin(INSTANCES, [3, 29000]), 0, INSTANCES))
    facts = {number: (s["category_id"], s["isthing"], s["iscrowd"]) for number, s in segments.items()}
    assert facts == {
        **{7: (0, False, 0), 23: (10, False, 0), 26: (13, True, 1)},
        **{24000: (11, True, 0), 24001: (11, True, 0)},
    }
    assert segments[24001]["bbox"] == [4, 0, 2, 2] and segments[24001]["area"] == 3
    assert record["image_id"] == STEMS["val"]
    assert read_semantic_map(record["sem_seg_file_name"]).tolist() == TRAIN_IDS


def test_the_truth_scores_100(cities, scores_of_truth, capsys):
    cityscapes.main(QUIET)
    scores = scores_of_truth("cityscapes_fine_panoptic_val")
    found = [scores["panoptic_seg"]["PQ"], scores["sem_seg"]["mIoU"], scores["bbox"]["AP"], scores["segm"]["AP"]]
    assert found == pytest.approx([100] * 4)


def test_archives_are_unpacked(cities, capsys):
    for name in ("gtFine", "leftImg8bit"):
        with zipfile.ZipFile(cities / f"{name}_trainvaltest.zip", "w") as archive:
            for path in sorted((cities / name).rglob("*.png")):
                archive.write(path, path.relative_to(cities))
                path.unlink()
    assert cityscapes.main(QUIET) == 0
    assert "cityscapes_fine_panoptic_train: 1 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("labelIds", lambda path: Image.fromarray(LABELS + 30).save(path), "has labels from 33 to 59; Cityscapes' are"),
        ("instanceIds", lambda path: Image.fromarray(INSTANCES * 2).save(path), "instanceIds.png has labels from"),
        ("instanceIds", lambda path: path.unlink(), "there is no .*ulm_000000_000019_gtFine_instanceIds.png"),
        ("labelIds", lambda path: path.unlink(), "train has no <city>/.*labelIds.png; download"),
    ],
)
def test_files_of_another_form_are_named(cities, file, change, sentence, capsys):
    change(cities / f"gtFine/train/ulm/ulm_000000_000019_gtFine_{file}.png")
    with pytest.raises(SystemExit):
        cityscapes.main(QUIET)
    assert re.search(sentence, " ".join(capsys.readouterr().err.split()))


def test_an_empty_folder_says_where_the_files_come_from(data_root, capsys):
    with pytest.raises(SystemExit):
        cityscapes.main(QUIET)
    assert "www.cityscapes-dataset.com" in capsys.readouterr().err
