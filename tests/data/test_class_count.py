"""The number of classes of a closed-set model, out of its data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from grounding_dino.data.class_count import check_class_count, with_class_count
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.fixed_classes import fixed_classes

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def three_classes(tmp_path: Path) -> Iterator[str]:
    """A `--dataset` argument of a file with three classes."""
    content = {"images": [], "annotations": [], "categories": [{"id": n, "name": f"kind {n}"} for n in (3, 7, 8)]}
    content["images"] = [{"id": 1, "file_name": "0.png", "width": 64, "height": 64}]
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    yield f"three_classes={tmp_path / 'boxes.json'}:{tmp_path}"
    if "three_classes" in DatasetCatalog:
        DatasetCatalog.remove("three_classes")
        MetadataCatalog.remove("three_classes")


def test_zeros_become_the_number_of_classes_of_the_data(three_classes: str) -> None:
    sets = ["DATASETS.EXTRA", [three_classes], "DATASETS.TRAIN", ["three_classes"]]
    cfg = load_cfg("r50_4scale_finetune", sets)
    filled = with_class_count(cfg)
    assert (filled.MODEL.CLASS_HEAD.NUM_CLASSES, filled.MODEL.DENOISING.NUM_LABELS) == (3, 3)
    assert cfg.MODEL.CLASS_HEAD.NUM_CLASSES == 0 and not filled.is_frozen()
    cfg.MODEL.CLASS_HEAD.NUM_CLASSES = 5
    cfg.freeze()
    filled = with_class_count(cfg)
    assert (filled.MODEL.CLASS_HEAD.NUM_CLASSES, filled.MODEL.DENOISING.NUM_LABELS) == (5, 5) and filled.is_frozen()


def test_an_evaluation_needs_no_training_set(three_classes: str) -> None:
    sets = ["DATASETS.EXTRA", [three_classes], "DATASETS.TRAIN", ["not_here"], "DATASETS.TEST", ["three_classes"]]
    assert with_class_count(load_cfg("r50_4scale_finetune", sets)).MODEL.CLASS_HEAD.NUM_CLASSES == 3


def test_things_and_stuff_are_counted_for_maps() -> None:
    sets = ["MODEL.CLASS_HEAD.NUM_CLASSES", 0, "DATASETS.TRAIN", ["made_of_maps"], "DATASETS.TEST", []]
    cfg = load_cfg("r50_panoptic", sets)
    DatasetCatalog.register("made_of_maps", lambda: [])
    MetadataCatalog.get("made_of_maps").set(thing_classes=["cat"], stuff_classes=["cat", "grass"])
    try:
        assert with_class_count(cfg).MODEL.CLASS_HEAD.NUM_CLASSES == 2
        cfg.INPUT.MAPPER = "InstanceMapper"
        assert with_class_count(cfg).MODEL.CLASS_HEAD.NUM_CLASSES == 1
        MetadataCatalog.remove("made_of_maps")
        with pytest.raises(ValueError, match="'made_of_maps' has no thing_classes"):
            with_class_count(cfg)
    finally:
        DatasetCatalog.remove("made_of_maps")
        MetadataCatalog.pop("made_of_maps", None)


@pytest.mark.parametrize("name", ["shapes_tiny", "r50_4scale_12ep"])
def test_what_is_said_or_read_from_text_stays(name: str) -> None:
    cfg = load_cfg(name)
    assert with_class_count(cfg) is cfg


def test_no_data_is_an_error_in_words() -> None:
    with pytest.raises(ValueError, match=r"\['mine_train', 'mine_val'\], none is registered"):
        with_class_count(load_cfg("r50_4scale_finetune"))


def test_boxes_for_a_model_of_things_and_stuff_are_of_its_things(
    build_tiny_mask: Callable[..., CfgNode], tiny_panoptic: str
) -> None:
    cfg = build_tiny_mask("DATASETS.TRAIN", [tiny_panoptic], "DATASETS.TEST", ["made_of_boxes"])
    DatasetCatalog.register("made_of_boxes", list)
    try:
        MetadataCatalog.get("made_of_boxes").thing_classes = list(MetadataCatalog.get(tiny_panoptic).thing_classes)
        check_class_count(cfg, ["made_of_boxes"])
        MetadataCatalog.remove("made_of_boxes")
        MetadataCatalog.get("made_of_boxes").thing_classes = ["date", "fig"]
        with pytest.raises(ValueError, match="'made_of_boxes' has 2 classes, but of the model's 5 3 are things"):
            check_class_count(cfg, ["made_of_boxes"])
    finally:
        DatasetCatalog.remove("made_of_boxes")
        MetadataCatalog.remove("made_of_boxes")


def test_things_are_said_by_another_set_of_the_same_classes(
    build_tiny_mask: Callable[..., CfgNode], tiny_panoptic: str
) -> None:
    MetadataCatalog.get("made_of_maps").stuff_classes = MetadataCatalog.get(tiny_panoptic).stuff_classes
    try:
        classes = fixed_classes(build_tiny_mask("DATASETS.TRAIN", [tiny_panoptic], "DATASETS.TEST", ["made_of_maps"]))
        assert classes is not None and classes.thing_indices() == {0, 1, 2}
    finally:
        MetadataCatalog.remove("made_of_maps")
