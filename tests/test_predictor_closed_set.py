"""The predictor with models of fixed classes: what it returns, in which size, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

from grounding_dino.model_zoo import build_model
from grounding_dino.predictor import GroundingPredictor, load_predictor

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

NAMES = ("disc", "bar", "cross", "sky", "grass")
BOXES_ALONE = ["TEST.PANOPTIC_ON", False, "TEST.SEMANTIC_ON", False]


@pytest.fixture(scope="module")
def build(build_tiny_mask):
    """`build(*opts)`: a predictor with random weights that give segments."""

    def of(*opts):
        torch.manual_seed(0)
        predictor = GroundingPredictor(build_tiny_mask(*opts))
        for name, parameter in predictor.model.named_parameters():
            if "class_head" in name or "mask_head" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return predictor

    return of


@pytest.fixture(scope="module")
def predictor(build):
    return build()


@pytest.fixture
def picture():
    """(40, 60, 3)."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def sets_as_before():
    """Data sets that a test registers are gone afterwards."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def test_a_model_with_segments_gives_a_dict_in_the_pictures_size(predictor, picture):
    found = predictor(picture, box_threshold=0.0)
    assert list(found) == ["instances", "panoptic_seg", "sem_seg", "class_names"]
    instances = found["instances"]
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes", "labels", "pred_masks"}
    assert instances.pred_masks.shape == (len(instances), 40, 60) and instances.pred_masks.dtype == torch.bool
    assert instances.labels == [NAMES[i] for i in instances.pred_classes.tolist()]
    assert set(instances.labels) <= set(NAMES[:3]) and len(instances)  # instances are of things
    ids, segments = found["panoptic_seg"]
    assert ids.shape == (40, 60) and ids.dtype == torch.int32
    assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments} and segments
    assert all(segment["isthing"] == (segment["category_id"] < 3) for segment in segments)
    assert found["sem_seg"].shape == (5, 40, 60) and found["class_names"] == list(NAMES)
    assert predictor.classes == NAMES


def test_the_threshold_is_of_instances_alone(predictor, picture):
    found = predictor(picture, box_threshold=1.0)
    assert len(found["instances"]) == 0 and found["instances"].pred_masks.shape == (0, 40, 60)
    assert found["panoptic_seg"][1] and found["sem_seg"].any()


def test_one_class_a_query_or_all(predictor, picture):
    best = predictor(picture, box_threshold=0.0)["instances"]
    every = predictor(picture, box_threshold=0.0, best_label_only=False)["instances"]
    assert len(best) == 12 and len(every) == 36  # queries; their pairs with things


def test_a_model_without_segments_gives_instances(build, picture):
    found = build(*BOXES_ALONE)(picture, box_threshold=0.0)
    assert isinstance(found, Instances) and found.pred_masks.shape[1:] == (40, 60) and set(found.labels) <= set(NAMES)
    boxes = build(*BOXES_ALONE, "MODEL.MASK_ON", False)(picture, box_threshold=0.0)
    assert set(boxes.get_fields()) == {"pred_boxes", "scores", "pred_classes", "labels"} and len(boxes)


def test_masks_as_run_lengths(build, picture):
    masks = build(*BOXES_ALONE)(picture, box_threshold=0.1)
    encoded = build(*BOXES_ALONE, "TEST.MASK_FORMAT", "rle")(picture, box_threshold=0.1)
    assert torch.equal(encoded.pred_masks_rle.decode(), masks.pred_masks) and len(masks)


@pytest.mark.parametrize("kind", ["PANOPTIC", "SEMANTIC"])
def test_one_kind_of_result_alone(build, picture, kind):
    other = {"PANOPTIC": "SEMANTIC", "SEMANTIC": "PANOPTIC"}[kind]
    found = build("TEST.INSTANCE_ON", False, f"TEST.{other}_ON", False)(picture)
    assert list(found) == [{"PANOPTIC": "panoptic_seg", "SEMANTIC": "sem_seg"}[kind], "class_names"]


def test_a_batch_of_pictures(predictor, picture):
    together = predictor([picture, picture[:20, :30]], box_threshold=0.0)
    assert [found["sem_seg"].shape[1:] for found in together] == [(40, 60), (20, 30)]
    for found, one in zip(together, (picture, picture[:20, :30])):
        alone = predictor(one, box_threshold=0.0)
        assert torch.allclose(found["sem_seg"], alone["sem_seg"], atol=1e-3)
    assert predictor([]) == []


@pytest.mark.parametrize("size", [(1, 1), (31, 20), (1, 200), (200, 1), (7, 7)])
def test_small_and_thin_pictures(predictor, size):
    found = predictor(Image.new("RGB", size), box_threshold=0.0)
    assert found["sem_seg"].shape == (5, *size[::-1]) and found["panoptic_seg"][0].shape == size[::-1]
    assert found["instances"].image_size == size[::-1]


def test_grey_pictures(predictor, picture):
    grey = picture[..., 0]
    expected = predictor(np.repeat(grey[..., None], 3, axis=2))
    for kind in (grey, grey[..., None], Image.fromarray(grey), torch.tensor(grey)[None]):
        assert torch.allclose(predictor(kind)["sem_seg"], expected["sem_seg"], atol=1e-5)


# What is refused


@pytest.mark.parametrize("text", [{"categories": ["disc"]}, {"categories": list(NAMES)}, {"caption": "a disc"}])
def test_text_is_refused(predictor, picture, text):
    with pytest.raises(ValueError, match=r"5 fixed classes \(disc, bar, cross, ...\) and reads no text"):
        predictor(picture, **text)
    with pytest.raises(ValueError, match="reads no text"):
        predictor.check_prompt(**text)
    predictor.check_prompt()


@pytest.mark.parametrize("part", ["class_head", "mask_head", "box_head"])
@pytest.mark.parametrize("alone", [[], ["TEST.INSTANCE_ON", False, "TEST.SEMANTIC_ON", False]])
def test_nan_is_an_error(build, picture, part, alone):
    broken = build(*alone)
    broken.weights = "run/model_final.pth"
    names = [name for name, _ in broken.model.named_parameters() if part in name and name.endswith("bias")]
    broken.model.get_parameter(names[-1]).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="run/model_final.pth.*hold NaN"):
        broken(picture)


def test_missing_weights_of_a_closed_set_model_are_a_sentence():
    with pytest.raises(FileNotFoundError, match="no weights are known for .*dino/r50_4scale_12ep.*MODEL_ZOO.md"):
        load_predictor("dino/r50_4scale_12ep", device="cpu")
    with pytest.raises(FileNotFoundError, match="mask_dino/coco/r50_panoptics.*r50_panoptic"):
        load_predictor("mask_dino/coco/r50_panoptics")
    with pytest.raises(ValueError, match="fits mask_dino/ade20k/r50_semantic.yaml, mask_dino/cityscapes"):
        load_predictor("r50_semantic")


def test_the_authors_functions_refuse_models_without_text():
    from grounding_dino.inference import load_model

    with pytest.raises(ValueError, match="mask_dino/coco/r50_panoptic is a model of fixed classes"):
        load_model("mask_dino/coco/r50_panoptic", "weights.pth")


# Names


def test_names_that_nobody_knows(build, picture):
    found = build("DATASETS.TEST", (), "DATASETS.TRAIN", (), *BOXES_ALONE)(picture, box_threshold=0.0)
    assert set(found.labels) <= {f"class {i}" for i in range(5)}


def test_names_of_a_training_on_data_of_ones_own(build_tiny_mask, tmp_path, sets_as_before):
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "nut"}, {"id": 9, "name": "bolt"}]}
    content["images"] = [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}]
    box = {"bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 9, **box}]
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "nuts.json").write_text(json.dumps(content))
    opts = ["MODEL.CLASS_HEAD.NUM_CLASSES", 2, "MODEL.DENOISING.NUM_LABELS", 2, "DATASETS.TRAIN", ("nuts",)]
    cfg = build_tiny_mask(*opts, "DATASETS.TEST", (), "DATASETS.EXTRA", [f"nuts={tmp_path / 'nuts.json'}:{tmp_path}"])
    assert build_model(cfg).classes.names == ("nut", "bolt")


def test_names_survive_a_lost_data_set(build_tiny_mask, tmp_path, sets_as_before):
    extra = [f"lost={tmp_path / 'l.json'}:{tmp_path}"]
    cfg = build_tiny_mask("DATASETS.TRAIN", ("lost",), "DATASETS.TEST", (), "DATASETS.EXTRA", extra)
    assert build_model(cfg).classes.names[4] == "class 4"


@pytest.mark.parametrize(
    ("name", "first"),
    [("ade20k/r50_semantic", "wall"), ("cityscapes/r50_semantic", "road"), ("r50_panoptic", "person")],
)
def test_published_models_know_their_names(name, first):
    import grounding_dino.modeling  # noqa: F401
    from grounding_dino.data.class_count import read_class_names
    from grounding_dino.model_zoo import load_cfg
    from grounding_dino.modeling.fixed_classes import fixed_classes

    cfg = load_cfg(name)
    read_class_names(cfg)
    classes = fixed_classes(cfg)
    assert classes is not None and classes.names[0] == first


# Grounded masks


def test_masks_of_what_a_text_names(tiny_cfg, picture):
    tiny_cfg.MODEL.MASK_ON = True
    tiny_cfg.merge_from_list(["MODEL.EMBED_DIM", 64, "MODEL.MASK_HEAD.IN_FEATURE", "stage1"])
    tiny_cfg.merge_from_list(["MODEL.SWIN.OUT_FEATURES", ["stage1", "stage2", "stage3", "stage4"]])
    tiny_cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "TEST.OBJECT_MASK_THRESHOLD", 0.0])
    torch.manual_seed(0)
    named = GroundingPredictor(tiny_cfg)
    found = named(picture, ["cat", "dog"], box_threshold=0.0)
    assert isinstance(found, Instances) and found.pred_masks.shape == (len(found), 40, 60) and len(found)
    spoken = named(picture, caption="a cat", box_threshold=0.0)
    assert set(spoken.get_fields()) == {"pred_boxes", "scores", "phrases", "pred_masks"}
    named.model.masks = dataclasses.replace(named.model.masks, panoptic=True, semantic=True)
    assert named(picture, ["cat", "dog"])["class_names"] == ["cat", "dog"]
    with pytest.raises(ValueError, match="ask with categories"):
        named(picture, caption="a cat")
