"""Detections and segments drawn on a picture, with the same colours on upstream Detectron2 as on the compact one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Boxes, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray

SEGMENT_ALPHA = 0.6
_WHITE = (1.0, 1.0, 1.0)


def color_of(category: int | str) -> NDArray[np.float32]:
    """The colour (3,) RGB in [0, 1] of a category by its index, or of a phrase by its letters: always the same."""
    palette = colormap(rgb=True, maximum=1)
    number = zlib.crc32(category.encode()) if isinstance(category, str) else category
    color: NDArray[np.float32] = palette[number % len(palette)]
    return color


def draw_results(image: NDArray[np.uint8], found: Instances | Mapping[str, Any], scale: float = 1.0) -> Any:
    """All that a predictor found in an RGB picture (H, W, 3); returns a new picture.

    Of a dict the panoptic segments are drawn; where there are none, the semantic map, and the instances on it.
    """
    if isinstance(found, Instances):
        return draw_detections(image, found, scale=scale)
    visualizer = Visualizer(image, None, scale=scale)
    if "panoptic_seg" in found:
        ids, segments_info = found["panoptic_seg"]
        _paint_panoptic(visualizer, ids, segments_info, found["class_names"])
    else:
        if "sem_seg" in found:
            _paint_semantic(visualizer, found["sem_seg"], found["class_names"])
        if "instances" in found:
            _paint_detections(visualizer, found["instances"], None)
    return np.ascontiguousarray(visualizer.get_output().get_image())


def draw_detections(
    image: NDArray[np.uint8], instances: Instances, texts: Sequence[str] | None = None, scale: float = 1.0
) -> NDArray[np.uint8]:
    """Boxes, masks and labels of a predictor's `Instances` on an RGB picture (H, W, 3); returns a new picture.

    Args:
        texts: a label for each instance, instead of its name and score.
        scale: enlargement of the result.
    """
    visualizer = Visualizer(image, None, scale=scale)
    _paint_detections(visualizer, instances, texts)
    return np.ascontiguousarray(visualizer.get_output().get_image())


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
    output = Visualizer(image, None, scale=scale).overlay_instances(
        boxes=boxes, masks=masks, labels=list(texts), assigned_colors=list(colors)
    )
    return np.ascontiguousarray(output.get_image())


def names_of(instances: Instances) -> list[str]:
    """The category name or phrase of each instance; its class index where there is neither."""
    for field in ("labels", "phrases"):
        if instances.has(field):
            return list(instances.get(field))
    return [str(index) for index in instances.pred_classes.tolist()]


def _paint_detections(visualizer: Visualizer, instances: Instances, texts: Sequence[str] | None) -> None:
    names = names_of(instances)
    keys: list[int] | list[str] = instances.pred_classes.tolist() if instances.has("pred_classes") else names
    if texts is None:
        texts = [f"{name} {score:.0%}".strip() for name, score in zip(names, instances.scores.tolist())]
    masks: Any = None
    if instances.has("pred_masks"):
        masks = instances.pred_masks.cpu().numpy()
    elif instances.has("pred_masks_rle"):
        masks = list(instances.pred_masks_rle)
    visualizer.overlay_instances(
        boxes=instances.pred_boxes.to("cpu"),
        masks=masks,
        labels=list(texts),
        assigned_colors=[color_of(key) for key in keys],
    )


def _paint_panoptic(visualizer: Visualizer, segments: Any, segments_info: Any, names: Sequence[str]) -> None:
    """Stuff first, then things, each segment in its class's colour and with its class's name."""
    ids = np.asarray(segments.cpu())
    for segment in sorted(segments_info, key=lambda segment: bool(segment["isthing"])):
        _paint_class(visualizer, ids == segment["id"], segment["category_id"], names)


def _paint_semantic(visualizer: Visualizer, scores: Any, names: Sequence[str]) -> None:
    """Every class in its colour and with its name, the largest first."""
    classes = np.asarray(scores.cpu().argmax(dim=0))
    present, areas = np.unique(classes, return_counts=True)
    for index in present[np.argsort(-areas, kind="stable")].tolist():
        _paint_class(visualizer, classes == index, index, names)


def _paint_class(visualizer: Visualizer, mask: NDArray[np.bool_], index: int, names: Sequence[str]) -> None:
    color, text = color_of(index), names[index]
    visualizer.draw_binary_mask(mask, color=color, edge_color=_WHITE, text=text, alpha=SEGMENT_ALPHA, area_threshold=0)
