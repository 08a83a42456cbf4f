"""Objects keep their numbers and categories: crossing, leaving, coming back, hardly seen, found twice."""

from __future__ import annotations

from grounding_dino.predictor import Labels
from grounding_dino.thresholds import CategoryThresholds
from grounding_dino.video.tracking import ObjectTracker, distinct, weaker

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

NAMES = ["cat", "dog", "traffic light"]
FPS = 10.0


def frame(*objects):
    """Instances of (x, y, class index, score), each 40 pixels wide and 30 high."""
    found = Instances((300, 400))
    found.pred_boxes = Boxes(torch.tensor([(x, y, x + 40, y + 30) for x, y, *_ in objects]).reshape(-1, 4).float())
    found.pred_classes = torch.tensor([index for *_, index, _ in objects], dtype=torch.int64)
    found.scores = torch.tensor([score for *_, score in objects], dtype=torch.float32)
    found.labels = Labels(NAMES[index] for index in found.pred_classes.tolist())
    return found


def follow(frames, threshold=0.4, times=None, **options):
    """What comes out for each frame: {track: (rounded x, label)}."""
    tracker = ObjectTracker(FPS, threshold, **options)
    ready = []
    for number, found in enumerate(frames):
        ready += tracker.push(number, found, times[number] if times else number / FPS)
    ready += tracker.finish()
    assert [number for number, _ in ready] == list(range(len(frames))) and not tracker.finish()
    return [
        {
            track: (round(float(x)), label)
            for track, x, label in zip(f.track_ids.tolist(), f.pred_boxes.tensor[:, 0], f.labels)
        }
        for _, f in ready
    ]


def test_crossing_objects_keep_their_numbers():
    seen = follow([frame((20 + 12 * t, 100, 0, 0.9), (300 - 12 * t, 110, 1, 0.8)) for t in range(24)])
    assert seen == [{1: (20 + 12 * t, "cat"), 2: (300 - 12 * t, "dog")} for t in range(24)]


def test_an_object_that_leaves_takes_its_number_along():
    frames = [frame((50, 50, 0, 0.9), *([(200 + 15 * t, 200, 1, 0.9)] if t < 4 else [])) for t in range(30)]
    frames += [frame((50, 50, 0, 0.9), (200, 200, 1, 0.9)) for t in range(3)]
    seen = follow(frames)
    assert all(set(tracks) == {1, 2} for tracks in seen[:4]) and all(set(tracks) == {1} for tracks in seen[4:30])
    assert all(set(tracks) == {1, 3} for tracks in seen[30:])  # another dog, as far as one can see


@pytest.mark.parametrize(("buffer", "number"), [(1.0, 1), (0.2, 2)])
def test_out_of_sight_for_a_moment(buffer, number):
    frames = [frame(*([] if 5 <= t < 10 else [(20 + 4 * t, 100, 0, 0.9)])) for t in range(15)]
    seen = follow(frames, buffer=buffer)
    assert [set(tracks) for tracks in seen] == [{1}] * 5 + [set()] * 5 + [{number}] * 5


def test_weak_detections_continue_a_track_and_begin_none():
    frames = [frame((20 + 4 * t, 100, 0, 0.9 if t < 4 else 0.25), (300, 200, 1, 0.3)) for t in range(10)]
    assert [set(tracks) for tracks in follow(frames)] == [{1}] * 10
    assert [set(tracks) for tracks in follow([found[found.scores > 0.4] for found in frames])] == [{1}] * 4 + [
        set()
    ] * 6


def test_thresholds_of_categories():
    thresholds = CategoryThresholds(0.8, {"cat": 0.2})
    seen = follow([frame((20, 100, 0, 0.3), (300, 200, 1, 0.7), (100, 20, 2, 0.9)) for _ in range(3)], thresholds)
    assert [sorted(label for _, label in tracks.values()) for tracks in seen] == [["cat", "traffic light"]] * 3
    lower = weaker(thresholds)
    assert isinstance(lower, CategoryThresholds) and lower.of("cat") == 0.1 and lower.of("dog") == 0.4
    assert weaker(0.5) == 0.25


def test_the_category_is_that_of_the_majority():
    classes = [0, 1, 0, 0, 1, 0, 0]
    seen = follow([frame((20 + 4 * t, 100, index, 0.9 if index == 0 else 0.7)) for t, index in enumerate(classes)])
    assert [tracks[1][1] for tracks in seen] == ["cat"] * 7
    tracker = ObjectTracker(FPS, 0.4)
    out = [ready for t in range(3) for ready in tracker.push(t, frame((20, 20, 2, 0.9)), t / FPS)]
    assert out[0][1].pred_classes.tolist() == [2] and out[0][1].labels == ["traffic light"]


def test_phrases_are_smoothed_too():
    tracker, out = ObjectTracker(FPS, 0.4), []
    for t, phrase in enumerate(["red cat", "cat", "red cat"]):
        found = frame((20, 20, 0, 0.9 - 0.1 * t))
        found.remove("labels")
        found.remove("pred_classes")
        found.phrases = Labels([phrase])
        out += tracker.push(t, found, t / FPS)
    out += tracker.finish()
    assert [found.phrases for _, found in out] == [["red cat"]] * 3


def test_of_detections_of_one_object_the_best_is_followed():
    twice = frame((21, 101, 1, 0.6), (20, 100, 0, 0.9), (300, 100, 0, 0.5))
    assert distinct(twice).labels == ["cat", "cat"] and len(distinct(frame())) == 0
    assert follow([twice] * 4) == [{1: (20, "cat"), 2: (300, "cat")}] * 4


def test_an_object_of_one_frame_and_frames_without_objects():
    assert follow([frame(), frame((20, 20, 0, 0.9)), frame(), frame()]) == [{}] * 4
    assert follow([frame()] * 3) == [{}] * 3 and follow([]) == []


def test_long_gaps_between_frames_are_time_too():
    still = [frame((20, 100, 0, 0.9)), frame((20, 100, 0, 0.9)), frame((20, 100, 0, 0.9))]
    assert [set(tracks) for tracks in follow(still, times=[0.0, 0.1, 0.3])] == [{1}] * 3
    assert follow(still, times=[0.0, 0.1, 60.0])[2] == {}


def test_masks_stay_with_their_objects():
    tracker = ObjectTracker(FPS, 0.4)
    for t in range(2):
        found = frame((300, 200, 1, 0.2), (20, 100, 0, 0.9))
        found.pred_masks = torch.zeros(2, 300, 400, dtype=torch.bool)
        found.pred_masks[1, 100:130, 20:60] = True
        tracker.push(t, found, t / FPS)
    ((_, out),) = tracker.finish()
    assert out.pred_masks.sum() == 1200 and np.allclose(out.pred_boxes.tensor[0], [20, 100, 60, 130])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackers", None)
    with pytest.raises(ValueError, match="pip install"):
        ObjectTracker(FPS, 0.4)
