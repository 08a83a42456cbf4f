"""Draws predictions and annotations on pictures, with Detectron2's interface.

A category keeps its colour (`thing_colors` of the metadata, else the palette), labels stay inside the picture
and move apart where they would overlap. Rotated boxes are not supported.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data import MetadataCatalog
from ..structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from . import _drawing
from ._masks import GenericMask, segments_of
from ._painter import Painter, VisImage
from .colormap import colormap
from .file_io import PathManager

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

logger = logging.getLogger(__name__)

_OFF_WHITE = (1.0, 1.0, 240.0 / 255)


@enum.unique
class ColorMode(enum.Enum):
    """How instances are coloured."""

    IMAGE = 0
    """One colour a category, the same in every picture."""
    SEGMENTATION = 1
    """The same, and jittered from instance to instance where asked for."""
    IMAGE_BW = 2
    """As IMAGE, with everything that is not masked drawn in grey."""


class Visualizer(Painter):
    """Draws on one RGB picture; every method returns the `VisImage` it drew on.

    Args:
        img_rgb: (H, W, 3), 0..255.
        metadata: names (`thing_classes`, `stuff_classes`) and colours (`thing_colors`, `stuff_colors`).
        scale: enlargement of the output.
        instance_mode: see `ColorMode`.
        font_size_scale: multiplies the text size, which follows the picture's.
    """

    def __init__(
        self,
        img_rgb: NDArray[Any],
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        super().__init__(img_rgb, scale, font_size_scale)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.cpu_device = torch.device("cpu")
        self._instance_mode = instance_mode

    # Predictions

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw `pred_boxes`, `pred_masks`, `pred_keypoints`, with "name 95%" from `pred_classes` and `scores`."""
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        masks = None
        if predictions.has("pred_masks"):
            arrays = np.asarray(predictions.pred_masks.cpu())
            masks = [GenericMask(mask, self.output.height, self.output.width) for mask in arrays]
        colors = None if classes is None else [self._category_color(index, "thing") for index in classes]
        if colors is not None and self._instance_mode is ColorMode.SEGMENTATION and jittering:
            colors = [_jitter(color, number) for number, color in enumerate(colors)]
        if self._instance_mode is ColorMode.IMAGE_BW:
            covered = [mask.mask for mask in masks or []]
            self.output.reset_image(self.grey_except(np.any(covered, axis=0) if covered else None))
        return self.overlay_instances(
            boxes=boxes,
            labels=instance_labels(classes, scores, self.metadata.get("thing_classes", None)),
            masks=masks,
            keypoints=predictions.pred_keypoints if predictions.has("pred_keypoints") else None,
            assigned_colors=colors,
            alpha=0.3 if self._instance_mode is ColorMode.IMAGE_BW else 0.5,
        )

    def draw_sem_seg(
        self,
        sem_seg: Any,
        area_threshold: float | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Any = _OFF_WHITE,
    ) -> VisImage:
        """Draw a category map (H, W) of stuff indices; indices without a name are left out."""
        ids = np.asarray(sem_seg.cpu() if isinstance(sem_seg, torch.Tensor) else sem_seg)
        names = self.metadata.stuff_classes
        found, areas = np.unique(ids, return_counts=True)
        for index in found[np.argsort(-areas)].tolist():
            if not 0 <= index < len(names):
                continue
            self.draw_binary_mask(
                ids == index,
                color=self._category_color(index, "stuff"),
                edge_color=edge_color,
                text=names[index] if draw_text else None,
                alpha=alpha,
                area_threshold=area_threshold or 0,
            )
        return self.output

    def draw_panoptic_seg(
        self,
        panoptic_seg: Any,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw an id map (H, W) with its segment records (`id`, `category_id`, `isthing`, `score` if any)."""
        segments = segments_of(panoptic_seg, segments_info)
        if self._instance_mode is ColorMode.IMAGE_BW:
            self.output.reset_image(self.grey_except(np.any([m for _, m in segments], axis=0) if segments else None))
        for record, mask in segments:
            if record["isthing"]:
                continue
            self.draw_binary_mask(
                mask,
                color=self._category_color(record["category_id"], "stuff"),
                edge_color=_OFF_WHITE,
                text=self.metadata.stuff_classes[record["category_id"]],
                alpha=alpha,
                area_threshold=area_threshold or 0,
            )
        things = [(record, mask) for record, mask in segments if record["isthing"]]
        if not things:
            return self.output
        classes = [record["category_id"] for record, _ in things]
        scores = [record["score"] for record, _ in things] if all("score" in record for record, _ in things) else None
        crowd = [record.get("iscrowd", 0) for record, _ in things]
        return self.overlay_instances(
            masks=[mask for _, mask in things],
            labels=instance_labels(classes, scores, self.metadata.thing_classes, crowd),
            assigned_colors=[_jitter(self._category_color(c, "thing"), n) for n, c in enumerate(classes)],
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw a data-set record in Detectron2's format: its instances, semantic map and panoptic segments."""
        annotations = dic.get("annotations", None)
        if annotations:
            classes = [record["category_id"] for record in annotations]
            crowd = [record.get("iscrowd", 0) for record in annotations]
            has_masks = all("segmentation" in record for record in annotations)
            has_keypoints = all("keypoints" in record for record in annotations)
            self.overlay_instances(
                boxes=[BoxMode.convert(r["bbox"], r["bbox_mode"], BoxMode.XYXY_ABS) for r in annotations],
                labels=instance_labels(classes, None, self.metadata.get("thing_classes", None), crowd),
                masks=[r["segmentation"] for r in annotations] if has_masks else None,
                keypoints=[r["keypoints"] for r in annotations] if has_keypoints else None,
                assigned_colors=[self._category_color(index, "thing") for index in classes],
            )
        sem_seg = dic.get("sem_seg", None)
        if sem_seg is None and "sem_seg_file_name" in dic:
            sem_seg = _read_ids(dic["sem_seg_file_name"])
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        panoptic = dic.get("pan_seg", None)
        if panoptic is None and "pan_seg_file_name" in dic:
            panoptic = _read_ids(dic["pan_seg_file_name"])
        if panoptic is not None:
            self.draw_panoptic_seg(panoptic, dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    # Several objects at once

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw N objects, the largest first, then all their labels on top.

        Args:
            boxes: `Boxes` or an array (N, 4) XYXY.
            labels: N texts.
            masks: `BitMasks`, `PolygonMasks`, or N items that `GenericMask` takes.
            keypoints: (N, K, 3) x y visibility; drawn as dots.
            assigned_colors: N colours; by default the palette's, in order.
            alpha: how much masks cover.
        """
        corners = None if boxes is None else _box_array(boxes)
        generic = None if masks is None else self._generic_masks(masks)
        points = None if keypoints is None else np.asarray(keypoints, dtype=np.float64).reshape(len(keypoints), -1, 3)
        counts = {len(given) for given in (corners, generic, points, labels) if given is not None}
        if len(counts) > 1:
            raise ValueError(f"boxes, masks, keypoints and labels must be equally many, got {sorted(counts)}")
        total = counts.pop() if counts else 0
        if not total:
            return self.output
        if assigned_colors is None:
            palette = colormap(rgb=True, maximum=1)
            assigned_colors = [palette[i % len(palette)] for i in range(total)]
        colors = [_drawing.parse_color(color) for color in assigned_colors]
        anchors = corners if corners is not None else _extents(generic, points)
        order = np.argsort(-np.prod(anchors[:, 2:] - anchors[:, :2], axis=1), kind="stable").tolist()
        for i in order:
            if generic is not None:
                self._paint_mask(generic[i], colors[i], alpha, colors[i])
            if corners is not None:
                self.draw_box(corners[i], alpha=1.0 if generic is None else 0.7, edge_color=colors[i])
            if points is not None:
                for x, y, visibility in points[i]:
                    if visibility > 0:
                        self.draw_circle((x, y), colors[i])
        if labels is not None:
            for i in reversed(order):  # the smallest have the fewest places
                self._label(labels[i], anchors[i], colors[i])
        return self.output

    # Colours and masks

    def _category_color(self, index: int, kind: str) -> _drawing.Color:
        """The metadata's colour of a "thing" or "stuff" category, else the palette's."""
        given = self.metadata.get(f"{kind}_colors", None)
        if given:
            r, g, b = (float(value) / 255 for value in given[index])
            return r, g, b
        palette = colormap(rgb=True, maximum=1)
        r, g, b = palette[index % len(palette)].tolist()
        return r, g, b

    def grey_except(self, covered: NDArray[Any] | None) -> NDArray[np.uint8]:
        """The picture in grey, except where `covered`."""
        grey = np.repeat(cv2.cvtColor(self.img, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        if covered is not None:
            grey[covered.astype(bool)] = self.img[covered.astype(bool)]
        return np.asarray(grey, dtype=np.uint8)

    def _generic_masks(self, masks: Any) -> list[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor
        if isinstance(masks, torch.Tensor):
            masks = list(np.asarray(masks.cpu()))
        size = self.output.height, self.output.width
        return [mask if isinstance(mask, GenericMask) else GenericMask(mask, *size) for mask in masks]


def _box_array(boxes: Any) -> NDArray[np.float64]:
    """Boxes of any kind -> (N, 4) XYXY."""
    if isinstance(boxes, Boxes):
        boxes = boxes.tensor
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _extents(masks: list[GenericMask] | None, keypoints: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """(N, 4) XYXY boxes around masks, or around keypoints where there are none."""
    if masks is not None:
        return np.stack([mask.bbox() for mask in masks])
    if keypoints is not None:
        return np.concatenate([keypoints[..., :2].min(axis=1), keypoints[..., :2].max(axis=1)], axis=1)
    raise ValueError("overlay_instances got labels, but neither boxes nor masks nor keypoints to put them at")


def instance_labels(
    classes: list[int] | None,
    scores: list[float] | None,
    names: Sequence[str] | None,
    crowd: list[int] | None = None,
) -> list[str] | None:
    """Texts like "cat 95%", from whatever is known; None when nothing is."""
    if classes is None and scores is None:
        return None
    count = len(classes if classes is not None else scores or [])
    parts: list[list[str]] = [[] for _ in range(count)]
    for i, words in enumerate(parts):
        if classes is not None:
            words.append(names[classes[i]] if names else str(classes[i]))
        if scores is not None:
            words.append(f"{scores[i] * 100:.0f}%")
        if crowd is not None and crowd[i]:
            words.append("(crowd)")
    return [" ".join(words) for words in parts]


def _jitter(color: _drawing.Color, number: int) -> _drawing.Color:
    """A shade of the colour for the `number`-th instance: the same in every run."""
    if number == 0:
        return color
    shift = np.random.default_rng(number).uniform(-1.0, 1.0, size=3)
    r, g, b = (np.asarray(color) + 0.12 * shift / np.linalg.norm(shift)).clip(0.0, 1.0).tolist()
    return r, g, b


def _read_ids(path: str) -> NDArray[np.int64]:
    """An id map (H, W) from a grey picture, or from RGB as COCO's panoptic files pack it."""
    with PathManager.open(path, "rb") as file:
        pixels = np.asarray(Image.open(file)).astype(np.int64)
    return pixels if pixels.ndim == 2 else pixels[..., :3] @ np.asarray([1, 256, 256**2])
