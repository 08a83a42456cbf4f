import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.build import load_records
from grounding_dino.data.shapes.prepare import SplitRecipe, prepare_split

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
