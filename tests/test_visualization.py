"""Detections and segments drawn for the demo: stable colours, names, masks."""

from __future__ import annotations

from grounding_dino.structures import RleMasks
from grounding_dino.visualization import SEGMENT_ALPHA, color_of, draw_detections, draw_results, names_of

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances


@pytest.fixture
def found():
    instances = Instances((60, 90))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 25, 40, 55], [50.0, 25, 80, 55]]))
    instances.scores = torch.tensor([0.9, 0.5])
    instances.pred_classes = torch.tensor([1, 0])
    instances.labels = ["dog", "cat"]
    return instances


def test_colours_follow_the_category(found):
    image = np.zeros((60, 90, 3), np.uint8)
    drawn = draw_detections(image, found)
    assert drawn.shape == image.shape and not image.any()
    assert drawn[45, 10] == pytest.approx(color_of(1) * 255, abs=60)
    assert drawn[45, 50] == pytest.approx(color_of(0) * 255, abs=60)
    assert np.array_equal(draw_detections(image, found[1:])[53:58, 55:75], drawn[53:58, 55:75])


def test_phrases_keep_their_colour(found):
    assert np.array_equal(color_of("red circle"), color_of("red circle"))
    found.remove("pred_classes")
    found.remove("labels")
    found.phrases = ["red circle", ""]
    assert names_of(found) == ["red circle", ""]
    assert draw_detections(np.zeros((60, 90, 3), np.uint8), found, scale=2.0).shape == (120, 180, 3)


def test_masks_are_drawn(found):
    masks = torch.zeros(2, 60, 90, dtype=torch.bool)
    masks[0, 25:55, 10:40] = True
    found.pred_masks = masks
    assert draw_detections(np.zeros((60, 90, 3), np.uint8), found)[50, 30].any()


def test_classes_without_names(found):
    found.remove("labels")
    assert names_of(found) == ["1", "0"]


# All that a predictor finds


@pytest.fixture
def segmented(found):
    """Stuff in the lower half, two things of one class in the upper; a semantic map of the same."""
    ids = torch.zeros(60, 90, dtype=torch.int32)
    ids[30:] = 1
    ids[5:25, 5:30], ids[5:25, 50:80] = 2, 3
    kinds = ((1, 2, False), (2, 0, True), (3, 0, True))
    info = [{"id": number, "category_id": category, "isthing": thing} for number, category, thing in kinds]
    scores = torch.stack([(ids > 1).float(), torch.full((60, 90), 0.5), (ids == 1).float()])
    names = ["cat", "dog", "grass"]
    return {"instances": found, "panoptic_seg": (ids, info), "sem_seg": scores, "class_names": names}


def shift_towards(drawn, category):
    """How far a black picture's pixels went towards the colour of a class."""
    return np.abs(drawn.astype(float) - color_of(category) * 255 * SEGMENT_ALPHA).max(-1)


def test_panoptic_segments_have_their_classes_colours(segmented):
    image = np.zeros((60, 90, 3), np.uint8)
    drawn = draw_results(image, segmented)
    assert drawn.shape == image.shape and not image.any()
    assert shift_towards(drawn, 2)[55, 5] < 3 and shift_towards(drawn, 0)[22, 8] < 3 > shift_towards(drawn, 0)[22, 77]
    assert not drawn[28, 4].any()  # no segment
    nothing = {**segmented, "panoptic_seg": (torch.zeros(60, 90, dtype=torch.int32), [])}
    assert not draw_results(image, nothing).any()


def test_semantic_classes_lie_under_the_instances(segmented):
    del segmented["panoptic_seg"]
    image = np.zeros((60, 90, 3), np.uint8)
    both = draw_results(image, segmented, scale=2.0)
    assert both.shape == (120, 180, 3)
    del segmented["instances"]
    alone = draw_results(image, segmented)
    assert shift_towards(alone, 2)[55, 5] < 3 and shift_towards(alone, 1)[15, 85] < 3
    assert not np.array_equal(both, draw_results(image, segmented, scale=2.0))


def test_instances_are_results_too(found):
    image = np.zeros((60, 90, 3), np.uint8)
    assert np.array_equal(draw_results(image, found), draw_detections(image, found))


def test_masks_as_run_lengths_are_drawn_alike(found):
    masks = torch.zeros(2, 60, 90, dtype=torch.bool)
    masks[:, 25:55, 10:40] = True
    image = np.zeros((60, 90, 3), np.uint8)
    found.pred_masks_rle = RleMasks.encode(masks)
    encoded = draw_detections(image, found)
    found.remove("pred_masks_rle")
    found.pred_masks = masks
    assert np.array_equal(encoded, draw_detections(image, found))


def test_a_picture_of_one_pixel():
    instances = Instances((1, 1))
    instances.pred_boxes, instances.scores = Boxes(torch.tensor([[0.0, 0, 1, 1]])), torch.tensor([0.5])
    instances.pred_classes, instances.labels = torch.tensor([0]), ["cat"]
    instances.pred_masks = torch.ones(1, 1, 1, dtype=torch.bool)
    one = torch.ones(1, 1, dtype=torch.int32)
    found = {"instances": instances, "sem_seg": torch.ones(1, 1, 1), "class_names": ["cat"]}
    image = np.zeros((1, 1, 3), np.uint8)
    assert draw_results(image, found).shape == (1, 1, 3)
    found["panoptic_seg"] = (one, [{"id": 1, "category_id": 0, "isthing": True}])
    assert draw_results(image, found).any()
