"""The predictor with thresholds by category and with names that are not wanted."""

from __future__ import annotations

from grounding_dino.model_zoo import load_cfg
from grounding_dino.predictor import GroundingPredictor
from grounding_dino.thresholds import CategoryThresholds

import numpy as np
import pytest
import torch

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_DECODER.NUM_LAYERS", 1,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1,
    "MODEL.TEXT_ENCODER.NUM_LAYERS", 1,
    "MODEL.QUERY_SELECTION.NUM_QUERIES", 20,
    "INPUT.MIN_SIZE_TEST", 64,
    "INPUT.MAX_SIZE_TEST", 96,
]  # fmt: skip
NAMES = ["red circle", "blue star", "green ring"]


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return GroundingPredictor(load_cfg("shapes_tiny", TINY))


@pytest.fixture
def picture():
    """(40, 60, 3) RGB, differing in its channels."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def pairs(found):
    return list(zip(found.labels, found.scores.tolist()))


# Thresholds by category


def test_each_category_has_its_threshold(predictor, picture):
    every = predictor(picture, NAMES, box_threshold=0.0)
    middle = every.scores.median().item()
    thresholds = CategoryThresholds(1.0, {"Red  Circle": 0.0, "blue star": middle})
    expected = [
        (name, score) for name, score in pairs(every) if name == NAMES[0] or (name == NAMES[1] and score > middle)
    ]
    assert pairs(predictor(picture, NAMES, box_threshold=thresholds)) == expected and 0 < len(expected) < len(every)


def test_thresholds_that_are_alike_are_one_number(predictor, picture):
    middle = predictor(picture, NAMES, box_threshold=0.0).scores.median().item()
    one, alike = (
        predictor(picture, NAMES, box_threshold=value, best_label_only=False)
        for value in (middle, CategoryThresholds(middle, {"red circle": middle}))
    )
    assert pairs(one) == pairs(alike) and len(one)


def test_a_caption_has_no_categories(predictor, picture):
    with pytest.raises(ValueError, match="thresholds by category go with categories"):
        predictor(picture, caption="a red circle", box_threshold=CategoryThresholds())
    with pytest.raises(ValueError, match="not_wanted goes with categories"):
        predictor(picture, caption="a red circle", not_wanted=["blue star"])


# Names that are not wanted


def test_names_that_are_not_wanted_compete_and_are_dropped(predictor, picture):
    together = predictor(picture, NAMES, box_threshold=0.0)
    alone = predictor(picture, NAMES[:1], box_threshold=0.0)
    found = predictor(picture, NAMES[:1], not_wanted=NAMES[1:], box_threshold=0.0)
    assert set(found.labels) == {"red circle"} and set(found.pred_classes.tolist()) == {0}
    assert set(pairs(found)) <= set(pairs(together)) and 0 < len(found) < len(alone)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "labels"}


def test_a_name_is_dropped_once_however_often_it_is_said(predictor, picture):
    once, often = (
        predictor(picture, NAMES[:1], not_wanted=names, box_threshold=0.0)
        for names in (["blue star"], ["blue star", "Blue  Star"])
    )
    assert pairs(once) == pairs(often)
    none, empty = (predictor(picture, NAMES, not_wanted=names, box_threshold=0.0) for names in (None, []))
    assert pairs(none) == pairs(empty)


def test_names_of_several_prompts(predictor, picture):
    """Wanted and other names share no query there; boxes decide."""
    wanted, others = [f"number {i} of many" for i in range(60)], [f"another {i} of many" for i in range(60)]
    every = predictor(picture, wanted, box_threshold=0.0)
    found = predictor(picture, wanted, not_wanted=others, box_threshold=0.0)
    assert set(found.labels) <= set(wanted) and 0 < len(found) < len(every)


def test_each_picture_has_its_own(predictor, picture):
    lists = [["blue star"], []]
    both = predictor([picture, picture], NAMES[:1], not_wanted=lists, box_threshold=0.0)
    for names, found in zip(lists, both):
        alone = predictor(picture, NAMES[:1], not_wanted=names, box_threshold=0.0)
        assert found.scores.tolist() == pytest.approx(alone.scores.tolist(), abs=1e-3)
    assert len(both[0]) < len(both[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"not_wanted": "blue star"}, "not_wanted must be a list of names, not the string 'blue star'"),
        ({"not_wanted": 5}, "not_wanted must be a list of names, .* not 5"),
        ({"not_wanted": ["a", 5]}, "not_wanted must be a list of names, and 5 is none"),
        ({"not_wanted": [" "]}, "not_wanted must be a list of names, and ' ' is none"),
        ({"not_wanted": [["a"], ["b"]]}, "2 lists of not_wanted names for 1 pictures"),
        ({"not_wanted": [["a"], "b"]}, "the not_wanted of picture 1 must be a list"),
        ({"not_wanted": ["a", " RED circle"]}, "'red circle' is in categories and in not_wanted"),
        ({"not_wanted": ["..."]}, "no word"),
        ({"not_wanted": ["a"], "categories": []}, "empty"),
        ({"box_threshold": {"red circle": 0.3}}, "box_threshold must be a number"),
    ],
)
def test_bad_arguments_get_a_sentence(predictor, picture, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        predictor(picture, **{"categories": NAMES, **arguments})


def test_a_text_is_checked_with_them(predictor):
    predictor.check_prompt(["a"], not_wanted=["b"])
    predictor.check_prompt(["a"], not_wanted=[["b"], ["c"]])
    predictor.check_prompt([["a"], ["b"]], not_wanted=["c"])
    with pytest.raises(ValueError, match="no word"):
        predictor.check_prompt(["a"], not_wanted=["b", "?"])
    with pytest.raises(ValueError, match="2 lists of categories for 3|3 lists of not_wanted names for 2"):
        predictor.check_prompt([["a"], ["b"]], not_wanted=[["c"], ["d"], ["e"]])


# Models of fixed classes


@pytest.fixture(scope="module")
def fixed(build_tiny_mask):
    """It finds disc, bar and cross, and segments of sky and grass."""
    torch.manual_seed(0)
    predictor = GroundingPredictor(build_tiny_mask())
    for name, parameter in predictor.model.named_parameters():
        if "class_head" in name or "mask_head" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return predictor


def test_classes_that_are_not_wanted_are_dropped(fixed, picture):
    every = fixed(picture, box_threshold=0.0)
    dropped = {segment["category_id"] for segment in every["panoptic_seg"][1]}
    name = fixed.classes[min(dropped)]
    found = fixed(picture, box_threshold=0.0, not_wanted=["Disc", name])
    assert set(found["instances"].labels) < set(every["instances"].labels)
    assert "disc" not in found["instances"].labels and found["class_names"] == list(fixed.classes)
    ids, segments = found["panoptic_seg"]
    assert not {0, min(dropped)} & {segment["category_id"] for segment in segments}
    assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments}
    assert torch.equal(found["sem_seg"], every["sem_seg"])


def test_other_names_are_refused(fixed, picture):
    fixed.check_prompt(not_wanted=["disc"])
    for names, message in (
        (["disk"], "'disk', which is none of the model's 5 classes; did you mean 'disc'"),
        ([3], "3"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fixed.check_prompt(not_wanted=names)
        with pytest.raises((TypeError, ValueError), match=message):
            fixed(picture, not_wanted=names)


def test_thresholds_of_classes(fixed, picture):
    found = fixed(picture, box_threshold=CategoryThresholds(0.0, {"bar": 1.0}))["instances"]
    assert "bar" not in found.labels and len(found)
