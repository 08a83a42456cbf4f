"""Objects followed from frame to frame, by ByteTrack (Zhang et al., 2022) as the package `trackers` has it.

Detections above the threshold begin and continue tracks. Weaker ones, down to half of it, continue a track that found
none above: so an object that is hardly seen for some frames keeps its number. Of detections of one object, which models
without NMS give, the best is followed.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any, Generic, TypeVar

from grounding_dino.detection_choice import SAME_OBJECT_IOU
from grounding_dino.layers.box_ops import box_iou
from grounding_dino.predictor import Labels
from grounding_dino.thresholds import CategoryThresholds, Threshold, thresholds_of
from grounding_dino.visualization import names_of

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray

Payload = TypeVar("Payload")

WEAK = 0.5  # of the threshold
BUFFER = 1.0  # seconds
LEAST_IOU = 0.2  # of a track's expected box and a detection's; the authors' too
_FRAMES_OF_BUFFER = 30  # a second, the package's unit


def weaker(threshold: Threshold) -> Threshold:
    """The least scores of detections that a tracker is to be given, for a threshold of what is shown."""
    if isinstance(threshold, CategoryThresholds):
        categories = {name: WEAK * value for name, value in threshold.categories.items()}
        return dataclasses.replace(threshold, default=WEAK * threshold.default, categories=categories)
    return WEAK * threshold


def tracker_class() -> Any:
    """ByteTrack.

    Raises:
        ValueError: the package that has it is missing, or too old.
    """
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise ValueError(
            'objects are followed by ByteTrack of the package trackers, which is not there: pip install "trackers>=2.6"'
        ) from error
    return ByteTrackTracker


def distinct(found: Instances) -> Instances:
    """The detections, the best first, without those that show the object of a better one, whatever its category."""
    found = found[found.scores.argsort(descending=True, stable=True)]
    same = box_iou(found.pred_boxes.tensor, found.pred_boxes.tensor) >= SAME_OBJECT_IOU
    kept: list[int] = []
    for row in range(len(found)):
        if not same[row, kept].any():
            kept.append(row)
    return found[torch.tensor(kept, dtype=torch.int64)]


class ObjectTracker(Generic[Payload]):
    """Gives detections the numbers of their tracks, in the order of the frames, one frame late.

    An object has a track once it was found in two frames in a row; the wait lets the first of them have its number too.
    Detections without a track are left out. Categories do not decide which detection continues a track, and a track's
    category is that which its detections had with the highest sum of scores so far, so that it does not flicker.
    """

    def __init__(self, fps: float, threshold: Threshold, buffer: float = BUFFER) -> None:
        """
        Args:
            fps: of the video.
            threshold: least scores of detections that begin a track; see :func:`weaker`.
            buffer: seconds for which an object may be out of sight.

        Raises:
            ValueError: of :func:`tracker_class`.
        """
        self.threshold = threshold
        self._tracker: Any = tracker_class()(
            lost_track_buffer=round(_FRAMES_OF_BUFFER * buffer),
            frame_rate=fps,
            track_activation_threshold=0.5,  # of 0 and 1, see `_strong`
            high_conf_det_threshold=0.5,
            minimum_iou_threshold=LEAST_IOU,
        )
        self._votes: dict[int, dict[tuple[str, int], float]] = defaultdict(lambda: defaultdict(float))
        self._waiting: tuple[Payload, Instances, NDArray[np.int64]] | None = None
        self._begun: list[tuple[Any, int]] = []  # tracks that the waiting frame may begin, and their rows in it

    def push(self, payload: Payload, found: Instances, time: float) -> list[tuple[Payload, Instances]]:
        """Take a frame's detections; what comes back is the frame before, with `track_ids`, or nothing at first.

        Args:
            payload: what belongs to the frame, and comes back with it.
            found: with `pred_boxes`, `scores`, and names as a predictor gives them.
            time: of the frame in seconds, later than the one before.
        """
        found = distinct(found)
        ids = self._ids(found, time)
        for track, row in self._begun:
            if track.tracker_id >= 0 and self._waiting is not None:
                self._waiting[2][row] = track.tracker_id + 1
        ready = self.finish()
        boxes = found.pred_boxes.tensor.double().numpy()
        self._begun = [
            (track, int(np.abs(boxes - track.get_state_bbox()).sum(axis=1).argmin()))
            for track in self._tracker.tracks
            if track.tracker_id < 0
        ]
        self._waiting = (payload, found, ids)
        return ready

    def finish(self) -> list[tuple[Payload, Instances]]:
        """The frame that still waits, if there is one."""
        if self._waiting is None:
            return []
        payload, found, ids = self._waiting
        self._waiting = None
        return [(payload, self._named(found, ids))]

    def _ids(self, found: Instances, time: float) -> NDArray[np.int64]:
        """(N,) the tracks' numbers from 1, 0 for none."""
        import supervision

        detections = supervision.Detections(
            xyxy=found.pred_boxes.tensor.double().numpy().reshape(-1, 4),
            confidence=self._strong(found).astype(np.float64),
            data={"row": np.arange(len(found))},
        )
        tracked = self._tracker.update(detections, timestamp=time)
        ids = np.zeros(len(found), dtype=np.int64)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id + 1
        return ids

    def _strong(self, found: Instances) -> NDArray[np.bool_]:
        """(N,) whether the score is above the threshold, which may differ between categories."""
        return np.asarray(found.scores.double().numpy() >= thresholds_of(self.threshold, names_of(found)))

    def _named(self, found: Instances, ids: NDArray[np.int64]) -> Instances:
        """The detections that have a track, with its number and its category."""
        kept = found[torch.from_numpy(np.flatnonzero(ids))]
        numbers = ids[ids > 0].tolist()
        names = names_of(kept)
        classes = kept.pred_classes.tolist() if kept.has("pred_classes") else [-1] * len(kept)
        best = []
        for number, name, index, score in zip(numbers, names, classes, kept.scores.tolist()):
            votes = self._votes[number]
            votes[name, index] += score
            best.append(max(votes, key=lambda vote: votes[vote]))
        kept.track_ids = torch.tensor(numbers, dtype=torch.int64)
        for field in ("labels", "phrases"):
            if kept.has(field):
                kept.set(field, Labels(name for name, _ in best))
        if kept.has("pred_classes"):
            kept.pred_classes = torch.tensor([index for _, index in best], dtype=torch.int64)
        return kept
