"""Detections drawn for the demo: stable colours, names, masks."""

from __future__ import annotations

from grounding_dino.visualization import color_of, draw_detections, names_of

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
