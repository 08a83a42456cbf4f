"""Detections and segments drawn for the demo: stable colours, names, masks."""

from __future__ import annotations

from grounding_dino.drawing import canvas
from grounding_dino.structures import RleMasks
from grounding_dino.visualization import (
    SEGMENT_ALPHA,
    color_of,
    draw_detections,
    draw_objects,
    draw_results,
    names_of,
)

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks


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
    plain = draw_detections(image, found, ["", ""])
    assert np.array_equal(draw_detections(image, found[1:], [""])[:, 48:], plain[:, 48:])


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


# Any size, any number, any kind


def detections(boxes, size, names=("cat", "traffic light")):
    """Instances of alternating categories, the scores falling."""
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.95, 0.4, len(instances.pred_boxes))
    instances.pred_classes = torch.arange(len(instances.pred_boxes)) % len(names)
    instances.labels = [names[index] for index in instances.pred_classes.tolist()]
    return instances


@pytest.fixture
def plates(monkeypatch):
    """The rectangles, texts, fonts and colours of all labels that are painted."""
    painted = []
    real = canvas.paint_plate

    def record(picture, text, corner, font, color, ink=None):
        width, height = canvas.draw_text(text, font).shape[::-1]
        painted.append(((*corner, corner[0] + width, corner[1] + height), text, font, color))
        real(picture, text, corner, font, color, ink)

    monkeypatch.setattr(canvas, "paint_plate", record)
    return painted


@pytest.mark.parametrize(("width", "least", "most"), [(640, 10, 18), (4000, 40, 80)])
def test_labels_are_readable_at_any_size(plates, width, least, most):
    height = width * 3 // 4
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.6], [0.5, 0.5, 0.9, 0.99]]) * torch.tensor([width, height] * 2)
    picture = np.full((height, width, 3), 90, np.uint8)
    drawn = draw_detections(picture, detections(boxes, (height, width)))
    assert [text for _, text, _, _ in plates] == ["cat 95%", "traffic light 40%"]
    for (x0, y0, x1, y1), text, font, _ in plates:
        ink = np.flatnonzero((canvas.draw_text(text, font) > 128).any(axis=1))
        assert least <= ink[-1] - ink[0] + 1 <= most and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (drawn[y0:y1, x0:x1] != 90).any(axis=-1).all()


@pytest.mark.parametrize("seed", range(4))
def test_crowded_pictures_keep_their_labels_apart_and_inside(plates, seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (60, 2)) * (640, 480)
    boxes = np.concatenate([corners, corners + rng.uniform(2, 120, (60, 2))], axis=1)
    draw_detections(np.zeros((480, 640, 3), np.uint8), detections(boxes, (480, 640)))
    ink = np.zeros((480, 640), int)
    assert len(plates) > 20
    for (x0, y0, x1, y1), *_ in plates:
        assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480
        ink[y0:y1, x0:x1] += 1
    assert ink.max() == 1


def test_odd_boxes_do_no_harm():
    nan, inf = float("nan"), float("inf")
    boxes = [[nan, 0, 5, 5], [-inf, -inf, inf, inf], [300, 300, 400, 400], [-90, -90, -50, -50], [50, 50, 40, 40]]
    image = np.zeros((60, 90, 3), np.uint8)
    assert draw_detections(image, detections(boxes, (60, 90))).any()
    outside = detections([boxes[0], boxes[2], boxes[3]], (60, 90))
    assert not draw_detections(image, outside).any()
    assert not draw_detections(image, detections([], (60, 90))).any()


def test_tracks_have_their_own_colours_and_numbers(plates, found):
    found.track_ids = torch.tensor([7, 3])
    draw_detections(np.zeros((60, 90, 3), np.uint8), found)
    assert [text.split()[0] for _, text, _, _ in plates] == ["#7", "#3"]
    assert np.array_equal(plates[0][3], color_of(7)) and np.array_equal(plates[1][3], color_of(3))


def test_results_without_scores_are_drawn(found, plates):
    found.remove("scores")
    assert draw_detections(np.zeros((60, 90, 3), np.uint8), found).any()
    assert sorted(text for _, text, _, _ in plates) == ["cat", "dog"]


def test_masks_of_every_form_are_drawn_alike():
    mask = torch.zeros(1, 60, 90, dtype=torch.bool)
    mask[0, 25:55, 10:40] = True
    forms = [BitMasks(mask), PolygonMasks([[[10, 25, 40, 25, 40, 55, 10, 55]]]), RleMasks.encode(mask), mask.numpy()]
    image, boxes = np.zeros((60, 90, 3), np.uint8), Boxes(torch.tensor([[10.0, 25, 40, 55]]))
    drawn = [draw_objects(image, boxes, form, ["cat"], [color_of(0)]) for form in forms]
    assert all(np.array_equal(drawn[0], other) for other in drawn[1:]) and drawn[0][40, 25].any()
    assert draw_objects(image, boxes, forms[1], ["cat"], [color_of(0)], 2.0)[80, 50].any()


def test_segments_are_named_once_and_inside(segmented, plates):
    big = {**segmented, "panoptic_seg": (segmented["panoptic_seg"][0].repeat_interleave(6, 0).repeat_interleave(6, 1),)}
    big["panoptic_seg"] += (segmented["panoptic_seg"][1],)
    drawn = draw_results(np.zeros((360, 540, 3), np.uint8), big)
    assert sorted(text for _, text, _, _ in plates) == ["cat", "cat", "grass"] and (drawn == 255).all(-1).any()
    (grass,) = [rectangle for rectangle, text, _, _ in plates if text == "grass"]
    assert grass[1] > 180 and abs(grass[1] + grass[3] - 2 * 270) < 20
