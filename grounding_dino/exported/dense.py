"""Detections of a dense detector (GLIP), in numpy: what `modeling/dense_head/detections.py` does in torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from grounding_dino.detection_choice import pairwise_iou
from grounding_dino.exported.description import DenseDescription
from grounding_dino.exported.detections import Answer, Array, Detections, Size, category_scores
from grounding_dino.structures import Prompt
from grounding_dino.text.phrases import sigmoid

import numpy as np


@dataclass(frozen=True)
class _Candidates:
    """Pairs of a place and a category (or any word of a caption) of one prompt."""

    boxes: Array  # (N, 4) XYXY pixels of the picture as the model saw it
    scores: Array  # (N,)
    classes: Array  # (N,)
    places: Array  # (N,)

    def __getitem__(self, chosen: Array) -> _Candidates:
        return _Candidates(self.boxes[chosen], self.scores[chosen], self.classes[chosen], self.places[chosen])


@dataclass(frozen=True)
class DensePicture:
    """How one picture's places are read.

    Attributes:
        dense: of the model.
        frame: (h, w) of the padded picture that boxes are relative to.
        image_size: (h, w) of the picture as the model saw it, without padding.
        size: (h, w) of the result.
    """

    dense: DenseDescription
    frame: Size
    image_size: Size
    size: Size

    def of_categories(self, answer: Answer, prompt: Prompt, limit: int) -> Detections:
        """The `limit` best boxes of a prompt's categories, best first."""
        kept = self._suppressed(self._candidates(answer, category_scores(answer.pred_logits, prompt)))
        found = self._detections(kept, limit)
        indices = np.asarray(prompt.category_indices, dtype=np.int64)
        return dataclasses.replace(found, pred_classes=indices[kept.classes[:limit]])

    def of_caption(self, answer: Answer, limit: int) -> Detections:
        """The `limit` best boxes, scored by their best token, with their `token_logits`."""
        kept = self._suppressed(self._candidates(answer, sigmoid(answer.pred_logits.max(-1, keepdims=True))))
        return dataclasses.replace(self._detections(kept, limit), token_logits=answer.pred_logits[kept.places[:limit]])

    def _candidates(self, answer: Answer, scores: Array) -> _Candidates:
        """The best pairs of every level, of `scores` (places, K)."""
        assert answer.pred_quality is not None
        centerness = sigmoid(answer.pred_quality)
        levels: list[_Candidates] = []
        start = 0
        for stride in self.dense.strides:
            end = start + -(-self.frame[0] // stride) * -(-self.frame[1] // stride)
            levels.append(self._of_level(answer.pred_boxes, scores, centerness, start, end))
            start = end
        if start != len(scores):
            raise ValueError(
                f"the model answers for {len(scores)} places, but its levels of strides {self.dense.strides} have "
                f"{start} in a picture of {self.frame[1]} x {self.frame[0]} pixels; export it anew"
            )
        fields = [field.name for field in dataclasses.fields(_Candidates)]
        return _Candidates(*(np.concatenate([getattr(level, name) for level in levels]) for name in fields))

    def _of_level(self, boxes: Array, scores: Array, centerness: Array, start: int, end: int) -> _Candidates:
        place, category = np.nonzero(scores[start:end] > self.dense.score_threshold)
        place += start
        score = scores[place, category]
        rank = score * centerness[place] if self.dense.rank_by_centerness else score
        top = np.argsort(-rank, kind="stable")[: self.dense.pre_nms_topk]
        place, category, score = place[top], category[top], score[top]
        return _Candidates(self._pixels(boxes[place]), np.sqrt(score * centerness[place]), category, place)

    def _pixels(self, boxes: Array) -> Array:
        """cxcywh in [0, 1] of the frame -> XYXY pixels, inside the picture; of each box a pixel is left at least."""
        height, width = self.frame
        boxes = boxes.astype(np.float32) * np.array([width, height, width, height], dtype=np.float32)
        limit = np.array([self.image_size[1], self.image_size[0]], dtype=np.float32)
        low = np.minimum(np.maximum(boxes[:, :2] - boxes[:, 2:] / 2, 0), limit - 1)
        high = np.minimum(np.maximum(boxes[:, :2] + boxes[:, 2:] / 2, 1), limit)
        return np.concatenate((low, high), axis=1)

    def _suppressed(self, found: _Candidates) -> _Candidates:
        """Without those that overlap a better one of their category too much; best first."""
        boxes = found.boxes.astype(np.float64)
        if not self.dense.nms_last_pixel:
            boxes = boxes - np.array([0, 0, 1, 1])
        kept = [np.zeros(0, dtype=np.int64)]
        for category in np.unique(found.classes):
            members = np.flatnonzero(found.classes == category)
            members = members[np.argsort(-found.scores[members], kind="stable")]
            kept.append(members[without_overlaps(boxes[members], self.dense.nms_threshold)])
        order = np.concatenate(kept)
        return found[order[np.lexsort((order, -found.scores[order]))]]

    def _detections(self, found: _Candidates, limit: int) -> Detections:
        """In pixels of a picture of `size`."""
        y, x = (out / seen for out, seen in zip(self.size, self.image_size))
        boxes = found.boxes[:limit] * np.array([x, y, x, y], dtype=np.float32)
        height, width = self.size
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        return Detections(self.size, boxes, found.scores[:limit], query_indices=found.places[:limit])


def without_overlaps(boxes: Array, threshold: float) -> Array:
    """Indices of boxes (N, 4) XYXY, best first, that no better one kept overlaps by more than `threshold` (IoU)."""
    left = np.arange(len(boxes))
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[pairwise_iou(boxes[left], boxes[best][None])[:, 0] <= threshold]
    return np.asarray(kept, dtype=np.int64)
