"""From a dense head's predictions to detections: thresholds, non-maximum suppression, output sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.modeling.dense_head.anchors import clip_boxes, decode_boxes
from grounding_dino.structures import DensePredictions, Prompt
from grounding_dino.text.category_scores import category_scores

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

# What a picture was asked for, with what was found: each of its prompts.
Found = Iterable[tuple[Prompt, DensePredictions]]


@dataclass(frozen=True)
class Candidates:
    """Pairs of a place and a category (or phrase) of one prompt."""

    boxes: Tensor  # (N, 4) XYXY pixels of the picture as the model saw it
    scores: Tensor  # (N,) geometric mean of the category's score and the place's centerness
    classes: Tensor  # (N,) index into the prompt's categories
    places: Tensor  # (N,) index into the places of all levels

    def __getitem__(self, chosen: Tensor | slice) -> Candidates:
        return Candidates(self.boxes[chosen], self.scores[chosen], self.classes[chosen], self.places[chosen])


@dataclass(frozen=True)
class DenseDetections:
    """How detections are chosen, see MODEL.DENSE_HEAD.

    Attributes:
        score_threshold: of categories, before centerness.
        pre_nms_topk: pairs kept of each level.
        nms_threshold: overlap from which the lower of two boxes of a category goes.
        rank_by_centerness: rank a level's pairs by score times centerness, instead of score alone.
        nms_last_pixel: overlaps are those of whole boxes; False: without their last column and row of pixels.
        detections_per_image: of every prompt, and of all together.
    """

    score_threshold: float = 0.05
    pre_nms_topk: int = 1000
    nms_threshold: float = 0.6
    rank_by_centerness: bool = True
    nms_last_pixel: bool = True
    detections_per_image: int = 100

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DenseDetections:
        """Read MODEL.DENSE_HEAD and TEST."""
        head = cfg.MODEL.DENSE_HEAD
        return cls(
            score_threshold=head.SCORE_THRESHOLD,
            pre_nms_topk=head.PRE_NMS_TOPK,
            nms_threshold=head.NMS_THRESHOLD,
            rank_by_centerness=head.RANK_BY_CENTERNESS_ON,
            nms_last_pixel=head.NMS_LAST_PIXEL_ON,
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    def of_picture(
        self, found: Found, anchors: Sequence[Tensor], inputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Instances]:
        """What was found in one picture in its output size, in the form of `postprocess_picture`.

        A detection's `query_indices` is its place, the same for all prompts.

        Args:
            found: predictions without a batch axis for each prompt; asked for one after the other, and not kept.
            anchors: of each level (A_l, 4) cxcywh in pixels.
            image_size: (h, w) of the picture as the model saw it, without padding.

        Raises:
            FloatingPointError: the predictions are not finite.
        """
        size = (int(inputs.get("height", image_size[0])), int(inputs.get("width", image_size[1])))
        if "categories" not in inputs:
            prompt, predictions = next(iter(found))
            _check_finite(predictions)
            if inputs.get("phrases"):
                return {"instances": self._of_phrases(prompt, predictions, anchors, image_size, size)}
            return {"instances": self._of_caption(predictions, anchors, image_size, size)}
        referring = bool(inputs.get("referring"))
        token_score = inputs.get("token_score", "mean") if referring else "mean"
        parts, classes = [], []
        for prompt, predictions in found:
            _check_finite(predictions)
            scores = self._scores(predictions, prompt, token_score)
            # expressions are each answered by their best box, however low it scores
            kept = self.suppress(self.candidates(scores, predictions, anchors, image_size, 0.0 if referring else None))
            parts.append(kept[: self.detections_per_image])
            indices = torch.tensor(prompt.category_indices, device=kept.scores.device)
            classes.append(indices[parts[-1].classes])
        joint = _joined(parts)
        order = joint.scores.sort(descending=True, stable=True).indices
        instances = _instances(joint[order], torch.cat(classes)[order], image_size, size)
        if referring or len(parts) == 1:
            return {"instances": instances}
        return {"instances": instances[: self.detections_per_image], "candidates": instances}

    def candidates(
        self,
        scores: Sequence[Tensor],
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        image_size: tuple[int, int],
        score_threshold: float | None = None,
    ) -> Candidates:
        """The best pairs of every level; of equal ones those of the first places and categories.

        Args:
            scores: of each level (h * w, K).
            score_threshold: None for that of the configuration.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        levels, first = [], 0
        for level, level_scores in enumerate(scores):
            centerness = predictions.centerness[level].float().sigmoid()  # (h * w,)
            place, category = (level_scores > threshold).nonzero(as_tuple=True)
            score = level_scores[place, category]
            rank = score * centerness[place] if self.rank_by_centerness else score
            top = rank.sort(descending=True, stable=True).indices[: self.pre_nms_topk]
            place, category, score = place[top], category[top], score[top]
            boxes = decode_boxes(predictions.box_deltas[level][place], anchors[level][place])
            levels.append(
                Candidates(
                    boxes=clip_boxes(boxes, image_size),
                    scores=(score * centerness[place]).sqrt(),
                    classes=category,
                    places=first + place,
                )
            )
            first += len(level_scores)
        return _joined(levels)

    def suppress(self, candidates: Candidates) -> Candidates:
        """Without those that overlap a better one of their category too much; best first."""
        from torchvision.ops import nms  # on use: it takes seconds to import

        boxes = candidates.boxes.double()  # float32 has no digits left for pixels beside the offsets of many categories
        if not self.nms_last_pixel:
            boxes = boxes - boxes.new_tensor([0, 0, 1, 1])
        offsets = candidates.classes.double() * (boxes.amax() + 2 if len(boxes) else 0)
        return candidates[nms(boxes + offsets[:, None], candidates.scores.double(), self.nms_threshold)]

    def _of_phrases(
        self,
        prompt: Prompt,
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        image_size: tuple[int, int],
        size: tuple[int, int],
    ) -> Instances:
        """The best boxes of each phrase, phrase by phrase and best first; `pred_classes` is the phrase.

        Phrases are asked for independently of each other: none crowds out another's places.
        """
        scores = self._scores(predictions, prompt)
        parts, classes = [], []
        for phrase in range(len(prompt.token_spans)):
            own = [level[:, phrase : phrase + 1] for level in scores]
            kept = self.suppress(self.candidates(own, predictions, anchors, image_size, 0.0))
            parts.append(kept[: self.detections_per_image])
            classes.append(torch.full_like(parts[-1].classes, phrase))
        return _instances(_joined(parts), torch.cat(classes), image_size, size)

    def _of_caption(
        self,
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        image_size: tuple[int, int],
        size: tuple[int, int],
    ) -> Instances:
        """Boxes scored by their best token, with their `token_logits` (N, T), to read phrases from."""
        scores = [logits.float().sigmoid().amax(-1, keepdim=True) for logits in predictions.token_logits]
        kept = self.suppress(self.candidates(scores, predictions, anchors, image_size))
        kept = kept[: self.detections_per_image]
        instances = _instances(kept, None, image_size, size)
        instances.token_logits = torch.cat(predictions.token_logits)[kept.places]
        return instances

    def _scores(self, predictions: DensePredictions, prompt: Prompt, token_score: str = "mean") -> Sequence[Tensor]:
        """Of each level (h * w, categories)."""
        scores = category_scores(torch.cat(predictions.token_logits), prompt, token_score)
        return scores.split([height * width for height, width in predictions.sizes])


def _joined(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.classes for part in parts]),
        torch.cat([part.places for part in parts]),
    )


def _instances(
    found: Candidates, classes: Tensor | None, image_size: tuple[int, int], size: tuple[int, int]
) -> Instances:
    """Detections in pixels of a picture of `size` (h, w)."""
    (height, width), (out_height, out_width) = image_size, size
    x, y = out_width / width, out_height / height
    boxes = Boxes(found.boxes.float() * found.boxes.new_tensor([x, y, x, y], dtype=torch.float32))
    boxes.clip(size)
    instances = Instances(size)
    instances.pred_boxes = boxes
    instances.scores = found.scores
    if classes is not None:
        instances.pred_classes = classes
    instances.query_indices = found.places
    return instances


def _check_finite(predictions: DensePredictions) -> None:
    """NaN would pass no threshold and end as a picture without objects."""
    checks = [part.isfinite().all() for part in (*predictions.box_deltas, *predictions.centerness)]
    checks += [~logits.isnan().any() for logits in predictions.token_logits]
    if not torch.stack(checks).all():  # asked once, since each answer waits for a GPU
        raise FloatingPointError(
            "the model predicts scores or boxes that are NaN or infinite; look for such values in its weights "
            "(MODEL.WEIGHTS)"
        )
