"""Every data set of the project says in words which file is missing and what provides it."""

import re

import grounding_dino.data.datasets  # noqa: F401

import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

# Names that Detectron2 registers, and that stay as they are.
DETECTRON2 = re.compile(
    r"coco_2014|coco_2017_(test|val_100|.*_panoptic)|keypoints|lvis_v1_test|lvis_v0\.5|lvis_v1_.*_cocofied|cityscapes|"
    r"voc_|ade20k|cityscape|coco_2017_.*_stuffonly|coco_2017_.*_separated"
)
# Their folder is settled when Detectron2 is imported.
SETTLED = ("coco_2017_train", "coco_2017_val")
# One name for each entry of ODinW is enough: they differ in their folder alone.
NAMES = [
    name
    for name in sorted(DatasetCatalog)
    if not DETECTRON2.match(name) and (not name.startswith("odinw_") or name.endswith(("_val", "_train_3shot_seed30")))
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named_with_its_path_and_remedy(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    if name in SETTLED:
        elsewhere = Metadata(json_file=str(tmp_path / "a.json"), image_root=str(tmp_path / "a"))
        monkeypatch.setitem(MetadataCatalog.data, name, elsewhere)
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get(name)
    message = str(error.value)
    assert str(tmp_path) in message
    assert re.search(r"`python (datasets|tools)/\w+\.py|https?://|put .* there", message), message
    assert "DETECTRON2_DATASETS" in message


def test_the_names_of_the_detection_sets_are_among_them():
    assert {
        "coco_2017_train",
        "coco_2017_val",
        "lvis_v1_minival",
        "objects365_v1_train",
        "objects365_v2_val",
        "openimages_v6_train",
        "v3det_val",
        "odinw_aquarium_val",
        "odinw_packages_caption_val",
    } <= set(NAMES)
