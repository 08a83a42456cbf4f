"""Detections and segments drawn on a picture, alike on upstream Detectron2 and on the compact one.

Line widths and letters follow the picture's size, labels keep clear of each other and of the picture's border, and the
colours stay apart for people with red-green colour blindness: see :mod:`grounding_dino.drawing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grounding_dino.drawing.canvas import (
    Canvas,
    enlarged,
    fill_mask,
    fill_segments,
    frame_of,
    outline_box,
    paint_labels,
)
from grounding_dino.drawing.labels import Rectangle, lay_out_labels
from grounding_dino.drawing.palette import Color, color_of
from grounding_dino.drawing.text import line_width, text_size

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from numpy.typing import NDArray

__all__ = ["SEGMENT_ALPHA", "color_of", "draw_detections", "draw_objects", "draw_results", "names_of"]

SEGMENT_ALPHA = 0.6
MASK_ALPHA = 0.45


def draw_results(image: NDArray[np.uint8], found: Instances | Mapping[str, Any], scale: float = 1.0) -> Any:
    """All that a predictor found in an RGB picture (H, W, 3); returns a new picture.

    Of a dict the panoptic segments are drawn; where there are none, the semantic map, and the instances on it.
    """
    canvas = enlarged(image, scale)
    if isinstance(found, Instances):
        _paint_detections(canvas, found, None, scale)
    elif "panoptic_seg" in found:
        ids, segments_info = found["panoptic_seg"]
        _paint_panoptic(canvas, np.asarray(ids.cpu()), segments_info, found["class_names"])
    else:
        if "sem_seg" in found:
            classes = np.asarray(found["sem_seg"].cpu().argmax(dim=0))
            _paint_segments(
                canvas, classes, {index: index for index in np.unique(classes).tolist()}, found["class_names"]
            )
        if "instances" in found:
            _paint_detections(canvas, found["instances"], None, scale)
    return canvas


def draw_detections(
    image: NDArray[np.uint8], instances: Instances, texts: Sequence[str] | None = None, scale: float = 1.0
) -> NDArray[np.uint8]:
    """Boxes, masks and labels of a predictor's `Instances` on an RGB picture (H, W, 3); returns a new picture.

    With the field `track_ids` (a video's) a colour is a track's, else a category's.

    Args:
        texts: a label for each instance, instead of its name and score; "" for none.
        scale: enlargement of the result.
    """
    canvas = enlarged(image, scale)
    _paint_detections(canvas, instances, texts, scale)
    return canvas


def draw_objects(
    image: NDArray[np.uint8],
    boxes: Boxes,
    masks: Any,
    texts: Sequence[str],
    colors: Sequence[NDArray[np.float32]],
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """N objects on an RGB picture (H, W, 3); returns a new picture.

    Args:
        boxes: in pixels of the picture.
        masks: `BitMasks`, `PolygonMasks`, an array (N, H, W), N run lengths, or None.
        texts: N labels.
        colors: N colours (3,) RGB in [0, 1].
        scale: enlargement of the result.
    """
    canvas = enlarged(image, scale)
    _paint_objects(canvas, _corners(boxes) * scale, _mask_arrays(masks, image.shape[:2]), texts, colors)
    return canvas


def names_of(instances: Instances) -> list[str]:
    """The category name or phrase of each instance; its class index where there is neither."""
    for field in ("labels", "phrases"):
        if instances.has(field):
            return list(instances.get(field))
    return [str(index) for index in instances.pred_classes.tolist()]


def _paint_detections(canvas: Canvas, instances: Instances, texts: Sequence[str] | None, scale: float) -> None:
    names = names_of(instances)
    keys: list[Any] = instances.pred_classes.tolist() if instances.has("pred_classes") else list(names)
    scores = instances.scores.tolist() if instances.has("scores") else None
    words = [[name] for name in names]
    if instances.has("track_ids"):
        keys = instances.track_ids.tolist()
        words = [[f"#{track}", name] for track, name in zip(keys, names)]
    if scores is not None:
        words = [[*parts, f"{score:.0%}"] for parts, score in zip(words, scores)]
    masks: Any = None
    if instances.has("pred_masks"):
        masks = instances.pred_masks
    elif instances.has("pred_masks_rle"):
        masks = list(instances.pred_masks_rle)
    _paint_objects(
        canvas,
        _corners(instances.pred_boxes) * scale,
        _mask_arrays(masks, instances.image_size),
        [" ".join(parts).strip() for parts in words] if texts is None else texts,
        [color_of(key) for key in keys],
        scores,
    )


def _paint_objects(
    canvas: Canvas,
    boxes: NDArray[np.float64],
    masks: Iterable[NDArray[np.uint8]] | None,
    texts: Sequence[str],
    colors: Sequence[Color],
    scores: Sequence[float] | None = None,
) -> None:
    """Masks, then boxes, the largest first, then the labels on top; boxes are in pixels of the canvas."""
    height, width = canvas.shape[:2]
    size = text_size(width, height)
    line = line_width(size)
    if masks is not None:
        line = max(1, line // 2)  # the masks' outlines show the objects already
        for mask, color in zip(masks, colors):
            fill_mask(canvas, _resized(mask, width, height), color, MASK_ALPHA, line)
    frames = {index: _frame(box, line, width, height) for index, box in enumerate(boxes)}
    seen = {index: frame for index, frame in frames.items() if frame is not None}
    for index in sorted(seen, key=lambda index: -_area(seen[index])):
        outline_box(canvas, seen[index], colors[index], line)
    labels = lay_out_labels(
        [texts[index] for index in seen],
        list(seen.values()),
        (width, height),
        size,
        None if scores is None else [scores[index] for index in seen],
    )
    paint_labels(canvas, labels, [colors[index] for index in seen], max(1, line_width(size) // 2))


def _area(rectangle: Rectangle) -> int:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _frame(box: NDArray[np.float64], line: int, width: int, height: int) -> Rectangle | None:
    """The frame of a box, of an infinite one what is in the picture; None where a corner is NaN."""
    return None if np.isnan(box).any() else frame_of(box.clip(-1e6, 1e6), line, (width, height))


def _paint_panoptic(canvas: Canvas, ids: NDArray[Any], segments_info: Any, names: Sequence[str]) -> None:
    """Each segment in its class's colour and with its class's name."""
    _paint_segments(canvas, ids, {segment["id"]: segment["category_id"] for segment in segments_info}, names)


def _paint_segments(canvas: Canvas, ids: NDArray[Any], classes: Mapping[int, int], names: Sequence[str]) -> None:
    """The segments of a map (h, w) whose ids have a class, with white lines between them."""
    height, width = canvas.shape[:2]
    size = text_size(width, height)
    known = sorted(classes)
    numbers = np.searchsorted(known, ids) if known else np.zeros(ids.shape, dtype=np.int64)
    found = np.asarray([*known, -1])[numbers] == ids
    segments = _resized(np.where(found, numbers + 1, 0).astype(np.uint16), width, height)
    colors: list[Color] = [color_of(classes[number]) for number in known]
    fill_segments(canvas, segments, colors, SEGMENT_ALPHA, max(1, line_width(size) // 2))
    middles, areas = _middles(segments, len(known))
    labels = lay_out_labels(
        [names[classes[number]] if areas[place] else "" for place, number in enumerate(known)],
        np.concatenate([middles, middles], axis=1),
        (width, height),
        size,
        areas,
        centred=True,
    )
    paint_labels(canvas, labels, colors, max(1, line_width(size) // 2))


def _middles(segments: NDArray[np.uint16], count: int) -> tuple[NDArray[np.float64], list[float]]:
    """(count, 2) x y: the point of each segment farthest from its border, and its area; both on a map made small."""
    height, width = segments.shape
    share = min(1.0, 320 / max(height, width))
    small = _resized(segments, max(1, round(width * share)), max(1, round(height * share)))
    middles, areas = np.zeros((count, 2)), [0.0] * count
    for number in range(count):
        mask = np.pad((small == number + 1).astype(np.uint8), 1)  # the picture's edge is a border too
        areas[number] = float(mask.sum())
        distance = np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        middles[number] = (float(x) - 0.5) * width / small.shape[1], (float(y) - 0.5) * height / small.shape[0]
    return middles, areas


def _corners(boxes: Any) -> NDArray[np.float64]:
    """`Boxes` -> (N, 4) XYXY."""
    return np.asarray(boxes.tensor.detach().cpu(), dtype=np.float64).reshape(-1, 4)


def _resized(mask: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    if mask.shape == (height, width):
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST))


def _mask_arrays(masks: Any, size: tuple[int, ...]) -> Iterable[NDArray[np.uint8]] | None:
    """Masks of any kind -> N arrays (H, W) of 0 and 1, made one at a time: together they may fill the memory."""
    if masks is None:
        return None
    if isinstance(masks, PolygonMasks):
        return (_of_polygons(polygons, size[0], size[1]) for polygons in masks.polygons)
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    return (_of_mask(mask) for mask in masks)


def _of_mask(mask: Any) -> NDArray[np.uint8]:
    if isinstance(mask, Mapping):
        return np.ascontiguousarray(coco_mask.decode(mask))
    values = np.ascontiguousarray(mask.cpu() if hasattr(mask, "cpu") else mask)
    return values.view(np.uint8) if values.dtype == np.bool_ else values.astype(np.uint8)


def _of_polygons(polygons: Sequence[Any], height: int, width: int) -> NDArray[np.uint8]:
    runs = coco_mask.frPyObjects(
        [np.asarray(polygon, dtype=np.float64).tolist() for polygon in polygons], height, width
    )
    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(runs)))
