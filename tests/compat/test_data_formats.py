"""Catalogs, and the formats of data sets."""

import json
from pathlib import Path

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
)
from detectron2.data.datasets import (
    convert_to_coco_json,
    load_coco_json,
    load_lvis_json,
    load_sem_seg,
    register_lvis_instances,
)
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.structures import BoxMode

# --- catalogs


def test_catalog_registers_once_and_names_what_is_known() -> None:
    DatasetCatalog.register("compat_test_once", lambda: [{"a": 1}])
    try:
        assert DatasetCatalog.get("compat_test_once") == [{"a": 1}]
        assert "compat_test_once" in DatasetCatalog.list()
        with pytest.raises((ValueError, AssertionError), match="already registered"):
            DatasetCatalog.register("compat_test_once", lambda: [])
    finally:
        DatasetCatalog.remove("compat_test_once")
    with pytest.raises(KeyError, match="coco_2017_val"):
        DatasetCatalog.get("compat_test_once")


def test_metadata_is_set_once() -> None:
    metadata = MetadataCatalog.get("compat_test_meta")
    try:
        assert metadata.set(thing_classes=["a"]) is metadata
        metadata.thing_classes = ["a"]
        with pytest.raises(AssertionError, match="already set|Attribute"):
            metadata.thing_classes = ["b"]
        with pytest.raises(AttributeError, match="stuff_classes"):
            _ = metadata.stuff_classes
        assert metadata.get("stuff_classes", 5) == 5
        assert MetadataCatalog.get("compat_test_meta") is metadata
        assert metadata.as_dict() == {"name": "compat_test_meta", "thing_classes": ["a"]}
    finally:
        MetadataCatalog.remove("compat_test_meta")


def test_builtin_coco() -> None:
    assert {"coco_2017_train", "coco_2017_val", "coco_2017_val_panoptic", "lvis_v1_val"} <= set(DatasetCatalog.list())
    metadata = MetadataCatalog.get("coco_2017_val")
    assert len(metadata.thing_classes) == 80 and len(COCO_CATEGORIES) == 133
    assert metadata.thing_classes[0] == "person" and metadata.thing_classes[-1] == "toothbrush"
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79
    assert metadata.evaluator_type == "coco"
    standard = _get_builtin_metadata("coco_panoptic_standard")
    assert len(standard["stuff_dataset_id_to_contiguous_id"]) == 53
    assert len(_get_builtin_metadata("coco_panoptic_separated")["stuff_classes"]) == 54


# --- formats


def test_load_coco_json_maps_ids_in_their_order(registered: str) -> None:
    records = DatasetCatalog.get(registered)
    assert [record["image_id"] for record in records] == [1, 2, 3, 4]
    assert MetadataCatalog.get(registered).thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get(registered).thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert [[ann["category_id"] for ann in record["annotations"]] for record in records] == [[0], [1], [1, 0], []]
    first = records[0]["annotations"][0]
    assert first["bbox_mode"] == BoxMode.XYWH_ABS and first["bbox"] == [10, 10, 20, 15]


def test_load_coco_json_without_a_name_keeps_ids_and_extra_keys(coco_folder: Path) -> None:
    records = load_coco_json(str(coco_folder / "boxes.json"), str(coco_folder), extra_annotation_keys=["area"])
    assert records[1]["annotations"][0]["category_id"] == 7
    assert records[1]["annotations"][0]["area"] == 100


def test_load_coco_json_refuses_repeated_ids(coco_folder: Path) -> None:
    content = json.loads((coco_folder / "boxes.json").read_text())
    content["annotations"][1]["id"] = 1
    (coco_folder / "twice.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, AssertionError), match="not unique"):
        load_coco_json(str(coco_folder / "twice.json"), str(coco_folder))


def test_coco_json_written_and_read_is_the_same(registered: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / "written.json"
    convert_to_coco_json(registered, str(path))
    written, original = json.loads(path.read_text()), json.loads((tmp_path / "boxes.json").read_text())
    for ours, theirs in zip(written["annotations"], original["annotations"], strict=True):
        assert {key: ours[key] for key in ("image_id", "category_id", "bbox", "iscrowd", "segmentation")} == {
            key: theirs[key] for key in ("image_id", "category_id", "bbox", "iscrowd", "segmentation")
        }
    assert [ann["area"] for ann in written["annotations"]] == [300, 300, 200, 200]  # of the masks
    assert {c["id"]: c["name"] for c in written["categories"]} == {3: "cat", 7: "dog"}
    before = path.stat().st_mtime_ns
    convert_to_coco_json(registered, str(path))
    assert path.stat().st_mtime_ns == before
    convert_to_coco_json(registered, str(path), allow_cached=False)
    assert path.stat().st_mtime_ns > before


def test_lvis_json(tmp_path: Path) -> None:
    content = {
        "images": [
            {
                "id": 9,
                "height": 4,
                "width": 6,
                "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg",
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [1],
            }
        ],
        "categories": [
            {"id": 2, "name": "b", "synonyms": ["bee", "b"], "image_count": 4},
            {"id": 1, "name": "a", "synonyms": ["ay"], "image_count": 3},
        ],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 2, "bbox": [0, 0, 1, 1], "segmentation": [[0] * 6]}],
    }
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    name = "compat_test_lvis"
    register_lvis_instances(name, {}, str(path), "root")
    try:
        (record,) = DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == ["ay", "bee"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert Path(record["file_name"]).parts == ("root", "val2017", "000000000009.jpg")
    assert record["neg_category_ids"] == [2] and record["annotations"][0]["category_id"] == 1
    assert len(load_lvis_json(str(path), "root")) == 1


def test_load_sem_seg_pairs_by_name(tmp_path: Path) -> None:
    for folder, extension in (("labels", "png"), ("images", "jpg")):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for stem in ("b", "sub/a"):
            (tmp_path / folder / f"{stem}.{extension}").touch()
    records = load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    pairs = [(Path(r["file_name"]).name, Path(r["sem_seg_file_name"]).name) for r in records]
    assert pairs == [("b.jpg", "b.png"), ("a.jpg", "a.png")]
