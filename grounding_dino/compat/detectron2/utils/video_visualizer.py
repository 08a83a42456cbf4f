"""Draws predictions on the frames of a video, each object in one colour from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from numpy.typing import NDArray

from ..structures import Instances
from ._masks import GenericMask, segments_of
from .colormap import colormap
from .visualizer import ColorMode, VisImage, Visualizer, instance_labels

__all__ = ["VideoVisualizer"]

FRAMES_KEPT = 3  # an object unseen for longer is forgotten
BOX_IOU = 0.6  # least overlap with the frame before to be the same object
MASK_IOU = 0.5


@dataclass
class _Track:
    """An object seen lately: what it is, where it was, its colour, and for how many frames it is gone."""

    label: int
    place: Any  # a box [x, y, w, h] or a run-length mask: what pycocotools takes
    color: NDArray[np.float32]
    missing: int = 0


class VideoVisualizer:
    """Draws the frames of one video in order; objects are followed by overlap, so that they keep their colours.

    Args:
        metadata: names and colours, as for `Visualizer`.
        instance_mode: IMAGE colours each object, SEGMENTATION each category, IMAGE_BW as IMAGE on a grey frame.
    """

    def __init__(self, metadata: Any, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._tracks: list[_Track] = []
        self._next_color = 0

    def draw_instance_predictions(self, frame: NDArray[Any], predictions: Instances) -> VisImage:
        """Draw the detections of the next frame (H, W, 3) RGB; fields as in `Visualizer`."""
        painter = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        if self._instance_mode is ColorMode.SEGMENTATION or not predictions.has("pred_boxes"):
            return painter.draw_instance_predictions(predictions, jittering=False)
        boxes = predictions.pred_boxes.tensor.detach().cpu().double().numpy()
        count = len(boxes)
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        masks = None
        places: list[Any] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        if predictions.has("pred_masks"):
            arrays = np.asarray(predictions.pred_masks.cpu(), dtype=np.uint8)
            masks = [GenericMask(mask, *frame.shape[:2]) for mask in arrays]
            places = [mask_util.encode(np.asfortranarray(mask)) for mask in arrays]
        if self._instance_mode is ColorMode.IMAGE_BW:
            covered = [mask.mask for mask in masks or []]
            painter.output.reset_image(painter.grey_except(np.any(covered, axis=0) if covered else None))
        colors = self._colors(classes or [0] * count, places, MASK_IOU if masks is not None else BOX_IOU)
        return painter.overlay_instances(
            boxes=None if masks is not None else boxes,  # as in Detectron2: boxes only clutter masks on a video
            masks=masks,
            labels=instance_labels(classes, scores, self.metadata.get("thing_classes", None)),
            assigned_colors=colors,
        )

    def draw_sem_seg(self, frame: NDArray[Any], sem_seg: Any, area_threshold: float | None = None) -> VisImage:
        """Draw the category map (H, W) of the next frame."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: NDArray[Any],
        panoptic_seg: torch.Tensor,
        segments_info: list[dict[str, Any]],
        area_threshold: float | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw the panoptic segments of the next frame; things are followed, stuff has its category's colour."""
        painter = Visualizer(frame, self.metadata)
        segments = segments_of(panoptic_seg, segments_info)
        stuff = [record for record, _ in segments if not record["isthing"]]
        painter.draw_panoptic_seg(panoptic_seg, stuff, area_threshold, alpha)
        things = [(record, mask.astype(np.uint8)) for record, mask in segments if record["isthing"]]
        classes = [record["category_id"] for record, _ in things]
        scores = [record["score"] for record, _ in things] if all("score" in record for record, _ in things) else None
        places = [mask_util.encode(np.asfortranarray(mask)) for _, mask in things]
        return painter.overlay_instances(
            masks=[mask for _, mask in things],
            labels=instance_labels(classes, scores, self.metadata.get("thing_classes", None)),
            assigned_colors=self._colors(classes, places, MASK_IOU),
            alpha=alpha,
        )

    def _colors(self, labels: list[int], places: list[Any], threshold: float) -> list[NDArray[np.float32]]:
        """Colours of this frame's objects: that of the object they continue, else the next of the palette."""
        taken: list[_Track | None] = [None] * len(labels)
        if places and self._tracks and isinstance(places[0], type(self._tracks[0].place)):
            overlap = np.asarray(mask_util.iou([t.place for t in self._tracks], places, [0] * len(places)))
            overlap[np.asarray([t.label for t in self._tracks])[:, None] != np.asarray(labels)[None]] = 0.0
            while overlap.size and overlap.max() > threshold:  # best pairs first
                old, new = np.unravel_index(int(overlap.argmax()), overlap.shape)
                taken[int(new)] = self._tracks[int(old)]
                overlap[old, :] = overlap[:, new] = 0.0
        palette = colormap(rgb=True, maximum=1)
        current = []
        for track, label, place in zip(taken, labels, places):
            if track is None:
                track = _Track(label, place, palette[self._next_color % len(palette)])
                self._next_color += 1
            track.place, track.missing = place, 0
            current.append(track)
        lost = [track for track in self._tracks if all(track is not kept for kept in current)]
        for track in lost:
            track.missing += 1
        self._tracks = current + [track for track in lost if track.missing <= FRAMES_KEPT]
        return [track.color for track in current]
