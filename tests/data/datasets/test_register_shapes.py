import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.build import load_records
from grounding_dino.data.shapes.prepare import SplitRecipe, prepare_segments, prepare_split

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "shapes"


def test_an_absent_folder_is_an_error_that_says_which_command_makes_it(root):
    with pytest.raises(FileNotFoundError, match="python datasets/prepare_shapes.py"):
        DatasetCatalog.get("shapes_val")
    with pytest.raises(FileNotFoundError, match="python datasets/prepare_shapes.py"):
        DatasetCatalog.get("shapes_val_refexp")
    for name in ("shapes_val_panoptic", "shapes_val_sem_seg"):
        with pytest.raises(FileNotFoundError, match="python datasets/prepare_shapes.py"):
            DatasetCatalog.get(name)


def test_prepared_splits_are_found_with_their_own_classes(root):
    for split in ("train", "unseen"):
        prepare_split(SplitRecipe(split, 2, 96, seed=0), root, progress=False)
    records = load_records(["shapes_train", "shapes_unseen", "shapes_train_refexp", "shapes_unseen_refexp"])
    assert [record["dataset_name"] for record in records[:6]] == (
        ["shapes_train"] * 2 + ["shapes_unseen"] * 2 + ["shapes_train_refexp"] * 2
    )
    assert len(records) == 6 + 12
    assert len(MetadataCatalog.get("shapes_train").thing_classes) == 80
    assert len(MetadataCatalog.get("shapes_unseen").thing_classes) == 20
    assert MetadataCatalog.get("shapes_unseen").evaluator_type == "coco"
    assert MetadataCatalog.get("shapes_unseen_refexp").evaluator_type == "refexp"


def test_segments_have_one_list_of_classes_that_is_known_without_files(root):
    for name in ("shapes_train_panoptic", "shapes_val_panoptic", "shapes_val_sem_seg"):
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == 83 and metadata.stuff_classes[80] == "plain background"
        assert list(metadata.stuff_dataset_id_to_contiguous_id) == [*range(1, 81), 101, 102, 103]
        assert metadata.ignore_label == 255
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    assert metadata.thing_dataset_id_to_contiguous_id == {number + 1: number for number in range(80)}
    assert set(metadata.evaluator_type) == {"coco", "coco_panoptic_seg", "sem_seg"}
    assert MetadataCatalog.get("shapes_val_sem_seg").evaluator_type == "sem_seg"


def test_prepared_segments_are_found(root):
    recipe = SplitRecipe("val", 2, 96, seed=0)
    prepare_split(recipe, root, progress=False)
    prepare_segments(recipe, root, progress=False)
    panoptic, semantic = load_records(["shapes_val_panoptic"]), load_records(["shapes_val_sem_seg"])
    assert [record["file_name"] for record in panoptic] == [record["file_name"] for record in semantic]
    assert [record["sem_seg_file_name"] for record in panoptic] == [record["sem_seg_file_name"] for record in semantic]
    *things, background = panoptic[0]["segments_info"]
    assert all(segment["isthing"] and segment["category_id"] < 80 for segment in things)
    assert not background["isthing"] and 80 <= background["category_id"] < 83
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    assert metadata.panoptic_json == str(root / "annotations" / "val_panoptic.json")
    assert metadata.json_file == str(root / "annotations" / "val.json")
