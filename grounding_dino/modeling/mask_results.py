"""Mask predictions to instance masks, panoptic segments and semantic maps (Mask DINO; Cheng et al., "MaskFormer")."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grounding_dino.modeling.pixel_decoder.mask_features import STRIDE
from grounding_dino.structures import RleMasks

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

MASK_FORMATS = ("bitmask", "rle")
_MAX_CHUNK = 2**24  # pixels of masks in floating point at once: 64 MB


@dataclass(frozen=True)
class PicturedMasks:
    """The mask logits (Q, h, w) of one picture, one cell to 4 x 4 pixels, and how they lie on it."""

    logits: Tensor
    frame: tuple[int, int]  # (h, w) pixels that the masks cover: the picture and padding that counts
    image_size: tuple[int, int]  # (h, w) of the picture as the model saw it, in the upper left of the frame
    size: tuple[int, int]  # (h, w) of the result

    def chunks(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some of `queries` (N,) at a time, with their logits (n, H, W) in the size of the result."""
        largest = max(a * b for a, b in (self.size, self.frame))
        for part in queries.split(max(1, _MAX_CHUNK // largest)) if len(queries) else ():
            yield part, self.on_picture(self.in_frame(self.logits[part]))

    def in_frame(self, masks: Tensor) -> Tensor:
        """Masks (n, h, w) enlarged to the pixels that the model saw: (n, H, W)."""
        height, width = self.frame
        pixels = (masks.shape[-2] * STRIDE, masks.shape[-1] * STRIDE)  # rounded up to whole cells
        return _resize(masks.float(), pixels)[..., :height, :width]

    def on_picture(self, masks: Tensor) -> Tensor:
        """Masks (n, H, W) in the frame, without its padding, in the size of the result."""
        height, width = self.image_size
        return _resize(masks[..., :height, :width], self.size)


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class MaskResults:
    """Which results a model with masks gives, and how.

    Attributes:
        instance, panoptic, semantic: give `instances`, `panoptic_seg`, `sem_seg`.
        object_mask_threshold: of the score of a query that may become a panoptic segment.
        overlap_threshold: share of its own mask that a segment must win against others.
        temperature: of the softmax over class scores in panoptic and semantic results; 0 leaves them as they are.
        exclusive_classes: class scores are probabilities of one class or another already.
        mask_scores: multiply an instance's score with the mean probability inside its mask.
        mask_format: "bitmask" for `pred_masks`, or "rle" for `pred_masks_rle`.
    """

    instance: bool = True
    panoptic: bool = False
    semantic: bool = False
    object_mask_threshold: float = 0.25
    overlap_threshold: float = 0.8
    temperature: float = 0.06
    exclusive_classes: bool = False
    mask_scores: bool = True
    mask_format: str = "bitmask"

    def __post_init__(self) -> None:
        if self.mask_format not in MASK_FORMATS:
            raise ValueError(f"unknown TEST.MASK_FORMAT {self.mask_format!r}; choose from {MASK_FORMATS}")
        if not (self.instance or self.panoptic or self.semantic):
            raise ValueError("the model is to give no result: set TEST.INSTANCE_ON, PANOPTIC_ON or SEMANTIC_ON True")
        for name in ("object_mask_threshold", "overlap_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"TEST.{name.upper()} is {getattr(self, name)}, but it is a share: give 0 to 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"TEST.CLASS_TEMPERATURE is {self.temperature}; give a positive number, or 0 for no softmax"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MaskResults:
        """Read TEST."""
        return cls(
            instance=cfg.TEST.INSTANCE_ON,
            panoptic=cfg.TEST.PANOPTIC_ON,
            semantic=cfg.TEST.SEMANTIC_ON,
            object_mask_threshold=cfg.TEST.OBJECT_MASK_THRESHOLD,
            overlap_threshold=cfg.TEST.OVERLAP_THRESHOLD,
            temperature=cfg.TEST.CLASS_TEMPERATURE,
            exclusive_classes=cfg.MODEL.LOSS.CLASS == "cross_entropy",
            mask_scores=cfg.TEST.MASK_SCORE_ON,
            mask_format=cfg.TEST.MASK_FORMAT,
        )

    def instances(self, instances: Instances, masks: PicturedMasks) -> Instances:
        """`instances`, whose `query_indices` point into `masks`, with masks, scored by them too, best first."""
        queries, place = instances.query_indices.unique(return_inverse=True)
        kept: list[Tensor] = []
        encoded: list[dict[str, Any]] = []
        scores: list[Tensor] = [instances.scores.new_zeros(0)]
        for _, logits in masks.chunks(queries):
            inside = logits > 0
            area = inside.sum(dim=(1, 2))
            scores.append((logits.sigmoid() * inside).sum(dim=(1, 2)) / (area + 1e-6))
            if self.mask_format == "rle":
                encoded += RleMasks.encode(inside)
            else:
                kept.append(inside)
        if self.mask_format == "rle":
            instances.pred_masks_rle = RleMasks(encoded)[place]
        else:
            empty = torch.zeros(0, *masks.size, dtype=torch.bool, device=masks.logits.device)
            instances.pred_masks = torch.cat([empty, *kept])[place]
        if self.mask_scores:
            instances.scores = instances.scores * torch.cat(scores)[place]
        return instances[instances.scores.argsort(descending=True, stable=True)]

    def panoptic_segments(
        self, class_scores: Tensor, masks: PicturedMasks, things: frozenset[int]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Each pixel's segment (H, W) int32, 0 for none, and the segments: `id`, `category_id`, `isthing`.

        Args:
            class_scores: (Q, K) probabilities.
            things: indices of classes whose segments are not merged.
        """
        best = class_scores.amax(-1)
        scores, labels = self._sharpened(class_scores).max(-1)
        candidates = (best > self.object_mask_threshold).nonzero()[:, 0]
        winner, probability, own_area = _compete(candidates, scores, masks)
        result = torch.zeros(masks.size, dtype=torch.int32, device=winner.device)
        segments: list[dict[str, Any]] = []
        stuff: dict[int, int] = {}
        # counted for all at once: the host waits for the device a few times, not a few times for each candidate
        shown = winner.where(probability >= 0.5, -1)
        count = len(candidates) + 1  # with -1, for none
        counts = (torch.bincount(place.flatten() + 1, minlength=count)[1:].tolist() for place in (winner, shown))
        numbers = zip(*counts, own_area.tolist(), labels[candidates].tolist())
        for index, (area, shown_area, own, category) in enumerate(numbers):
            if own == 0 or area / own < self.overlap_threshold or shown_area == 0:
                continue
            visible = shown == index
            if category not in things and category in stuff:
                result[visible] = stuff[category]
                continue
            segments.append({"id": len(segments) + 1, "isthing": category in things, "category_id": category})
            result[visible] = len(segments)
            if category not in things:
                stuff[category] = len(segments)
        return result, segments

    def semantic_map(self, class_scores: Tensor, masks: PicturedMasks) -> Tensor:
        """(K, H, W): for each class the sum over queries of its score times the mask's probability.

        A model that gives nothing else sums in the size that it saw, and resizes the sums, as the published ones do.
        """
        weights = self._sharpened(class_scores)  # (Q, K)
        alone = not (self.instance or self.panoptic)
        seen = PicturedMasks(masks.logits, masks.frame, masks.frame, masks.frame) if alone else masks
        total = torch.zeros(weights.shape[1], *seen.size, device=weights.device)
        for part, logits in seen.chunks(torch.arange(len(weights), device=weights.device)):
            total += torch.einsum("qk,qhw->khw", weights[part], logits.sigmoid())
        return masks.on_picture(total) if alone else total

    def _sharpened(self, class_scores: Tensor) -> Tensor:
        if self.temperature <= 0 or self.exclusive_classes:
            return class_scores
        return (class_scores / self.temperature).softmax(-1)


@contextlib.contextmanager
def encoded_masks(model: nn.Module) -> Iterator[None]:
    """Within it a model with masks gives `pred_masks_rle`: what an evaluator needs, without a picture's dense masks."""
    parts: Any = getattr(model, "module", model)  # distributed training wraps the model
    masks = getattr(parts, "masks", None)
    if not isinstance(masks, MaskResults):
        yield
        return
    parts.masks = dataclasses.replace(masks, mask_format="rle")
    try:
        yield
    finally:
        parts.masks = masks


def _compete(candidates: Tensor, scores: Tensor, masks: PicturedMasks) -> tuple[Tensor, Tensor, Tensor]:
    """Which candidate has each pixel (H, W; -1 without any), its mask's probability there, and each one's own area."""
    device = candidates.device
    best = torch.zeros(masks.size, device=device)
    winner = torch.full(masks.size, -1, dtype=torch.int64, device=device)
    probability = torch.zeros(masks.size, device=device)
    areas = [candidates[:0]]
    first = 0
    for part, logits in masks.chunks(candidates):
        inside = logits.sigmoid()
        areas.append((inside >= 0.5).sum(dim=(1, 2)))
        value, index = (scores[part][:, None, None] * inside).max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, index + first, winner)
        probability = torch.where(better, inside.gather(0, index[None])[0], probability)
        first += len(part)
    return winner, probability, torch.cat(areas)
