import json
import shutil

import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.datasets.register_grounding import GROUNDING_SETS, register_grounding
from grounding_dino.data.streaming import LazyRecords

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

pytestmark = pytest.mark.usefixtures("cache")

SIZE = {"height": 40, "width": 50}
REGION = {"bbox": [1, 2, 9, 9], "phrase": "a cat", "tokens_positive": [[0, 5]]}
GROUNDING = {"filename": "a.png", **SIZE, "grounding": {"caption": "a cat", "regions": [REGION]}}
DETECTION = {"filename": "a.png", **SIZE, "detection": {"instances": [{"bbox": [1, 2, 9, 9], "label": 1}]}}
MDETR = {
    "images": [{"id": 1, "file_name": "a.png", **SIZE, "caption": "a cat"}],
    "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 2, 8, 7], "tokens_positive": [[0, 5]]}],
    "categories": [],
}


@pytest.fixture
def root(tmp_path, monkeypatch, pictures):
    """A folder of data sets; `root(path, rows or json)` writes a file of annotations, with its pictures."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))

    def write(path, content, images=None):
        file = tmp_path / "sets" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = content if isinstance(content, list) else [content]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if images:
            shutil.copytree(pictures, tmp_path / "sets" / images, dirs_exist_ok=True)

    return write


def test_goldg_is_read_as_published_or_as_rows(root):
    root("gqa/final_mixed_train_no_coco.json", MDETR, "gqa/images")
    (record,) = DatasetCatalog.get("goldg_mixed_train")
    root("gqa/final_mixed_train_no_coco_vg.json", [GROUNDING])
    records = DatasetCatalog.get("goldg_mixed_train")
    assert isinstance(records, LazyRecords)
    for key in ("caption", "phrases", "annotations"):
        assert record[key] == records[0][key]
    assert record["annotations"][0]["bbox"] == [1, 2, 8, 7]


def test_objects365_in_odvg_form_has_corrected_names(root):
    root("objects365v1/o365v1_train_od.json", [DETECTION], "objects365v1/train")
    root("objects365v1/o365v1_label_map.json", {"0": "person", "1": "tea pot"})
    (record,) = DatasetCatalog.get("objects365_v1_train_odvg")
    assert record["annotations"][0]["category_id"] == 1
    assert MetadataCatalog.get("objects365_v1_train_odvg").thing_classes == ["person", "teapot"]


@pytest.mark.parametrize("name", ["grit", "cap4m"])
def test_captions_of_the_web_are_read_from_rows_or_from_tar_files(root, name, tmp_path, write_tar):
    shard = write_tar("0000.tar", [{**GROUNDING, "filename": "3.png"}])
    (tmp_path / "sets" / name).mkdir(parents=True)
    shutil.copy(shard, tmp_path / "sets" / name)
    (packed,) = DatasetCatalog.get(f"{name}_train")
    root(f"{name}/annotations/00000.jsonl", [GROUNDING], f"{name}/images")
    (unpacked,) = DatasetCatalog.get(f"{name}_train")
    assert "image_bytes" in packed and "image_bytes" not in unpacked
    assert packed["phrases"] == unpacked["phrases"] == [[(0, 5)]]


def test_all_are_known_and_registering_again_changes_nothing():
    before = {grounding_set.name: DatasetCatalog[grounding_set.name] for grounding_set in GROUNDING_SETS}
    register_grounding()
    assert all(DatasetCatalog[name] is function for name, function in before.items())
    assert {"goldg_flickr_train", "goldg_mixed_coco_train", "v3det_train_odvg", "grit_train"} <= set(before)
