"""Detections drawn on a picture, with the same colours on upstream Detectron2 as on the compact one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Boxes, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray


def color_of(category: int | str) -> NDArray[np.float32]:
    """The colour (3,) RGB in [0, 1] of a category by its index, or of a phrase by its letters: always the same."""
    palette = colormap(rgb=True, maximum=1)
    number = zlib.crc32(category.encode()) if isinstance(category, str) else category
    color: NDArray[np.float32] = palette[number % len(palette)]
    return color


def draw_detections(
    image: NDArray[np.uint8], instances: Instances, texts: Sequence[str] | None = None, scale: float = 1.0
) -> NDArray[np.uint8]:
    """Boxes, masks and labels of a predictor's `Instances` on an RGB picture (H, W, 3); returns a new picture.

    Args:
        texts: a label for each instance, instead of its name and score.
        scale: enlargement of the result.
    """
    names = names_of(instances)
    keys: list[int] | list[str] = instances.pred_classes.tolist() if instances.has("pred_classes") else names
    if texts is None:
        texts = [f"{name} {score:.0%}".strip() for name, score in zip(names, instances.scores.tolist())]
    masks: Any = instances.pred_masks.cpu().numpy() if instances.has("pred_masks") else None
    return draw_objects(image, instances.pred_boxes.to("cpu"), masks, texts, [color_of(key) for key in keys], scale)


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
        masks: `BitMasks`, `PolygonMasks`, an array (N, H, W), or None.
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
