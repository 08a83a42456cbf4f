"""Predictions to `Instances`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy
from grounding_dino.structures import Predictions, Prompt
from grounding_dino.text.prompt import category_scores

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def postprocess_picture(
    found: Sequence[tuple[Prompt, Predictions]],
    inputs: Mapping[str, Any],
    image_size: Sequence[int],
    detections_per_image: int,
) -> dict[str, Instances]:
    """Detections of one picture in its output size (`height`, `width` of `inputs`, else `image_size`).

    `found` pairs each prompt of the picture with its predictions (Q, T), (Q, 4). With categories, `instances` are the
    best (query, category) pairs over all prompts, with `pred_classes` the index into `inputs["categories"]`; where the
    names took several prompts there are also `candidates`, the best pairs of every prompt, for measures without a limit
    per picture (fixed AP). Where the categories are `referring` expressions, `instances` are the best pairs of each
    prompt, scored as `token_score` of the inputs says. With a caption and `phrases`: the best queries of each phrase,
    which `pred_classes` names. With a caption alone: one detection a query, scored by its best token, with that query's
    `token_logits`.
    """
    size = (int(inputs.get("height", image_size[0])), int(inputs.get("width", image_size[1])))
    if "categories" not in inputs:
        if inputs.get("phrases"):
            return {"instances": phrase_instances(*found[0], size, detections_per_image)}
        return {"instances": caption_instances(found[0][1], size)}
    if inputs.get("referring"):
        # Expressions are asked for independently of each other: none may crowd out another's boxes.
        token_score = inputs.get("token_score", "mean")
        return {"instances": candidate_instances(found, size, detections_per_image, token_score)}
    candidates = candidate_instances(found, size, detections_per_image)
    if len(found) == 1:
        return {"instances": candidates}
    return {"instances": candidates[:detections_per_image], "candidates": candidates}


def category_instances(
    found: Sequence[tuple[Prompt, Predictions]], size: tuple[int, int], detections_per_image: int
) -> Instances:
    """The `detections_per_image` best of all (query, category) pairs, best first; see :func:`candidate_instances`."""
    return candidate_instances(found, size, detections_per_image)[:detections_per_image]


def candidate_instances(
    found: Sequence[tuple[Prompt, Predictions]],
    size: tuple[int, int],
    detections_per_prompt: int,
    token_score: str = "mean",
) -> Instances:
    """The `detections_per_prompt` best (query, category) pairs of every prompt, all of them sorted, best first.

    Of equal scores the earlier prompt's comes first. `query_indices` tells which detections are of one query; queries
    are counted through all prompts.
    """
    scores, classes, boxes, queries = [], [], [], []
    first_query = 0
    for prompt, predictions in found:
        probability = category_scores(predictions.pred_logits, prompt, token_score)  # (Q, categories of this prompt)
        top = probability.flatten().topk(min(detections_per_prompt, probability.numel()))
        query = top.indices // probability.shape[1]
        category = torch.tensor(prompt.category_indices, device=query.device)
        scores.append(top.values)
        classes.append(category[top.indices % probability.shape[1]])
        boxes.append(predictions.pred_boxes[query])
        queries.append(first_query + query)
        first_query += len(probability)
    all_scores, order = torch.cat(scores).sort(descending=True, stable=True)
    instances = Instances(size)
    instances.pred_boxes = scale_boxes(torch.cat(boxes)[order], size)
    instances.scores = all_scores
    instances.pred_classes = torch.cat(classes)[order]
    instances.query_indices = torch.cat(queries)[order]
    return instances


def phrase_instances(
    prompt: Prompt, predictions: Predictions, size: tuple[int, int], detections_per_phrase: int
) -> Instances:
    """The best queries of each phrase of a caption, phrase by phrase and best first; `pred_classes` is the phrase."""
    scores = category_scores(predictions.pred_logits, prompt).T  # (phrases, Q)
    top = scores.topk(min(detections_per_phrase, scores.shape[1]), dim=1)
    instances = Instances(size)
    instances.pred_boxes = scale_boxes(predictions.pred_boxes[top.indices.flatten()], size)
    instances.scores = top.values.flatten()
    instances.pred_classes = torch.arange(len(scores), device=scores.device).repeat_interleave(top.values.shape[1])
    instances.query_indices = top.indices.flatten()
    return instances


def caption_instances(predictions: Predictions, size: tuple[int, int]) -> Instances:
    """Every query with its best token's score, best first, and its `token_logits` (Q, T), to read phrases from."""
    scores, order = predictions.pred_logits.amax(-1).float().sigmoid().sort(descending=True, stable=True)
    instances = Instances(size)
    instances.pred_boxes = scale_boxes(predictions.pred_boxes[order], size)
    instances.scores = scores
    instances.token_logits = predictions.pred_logits[order]
    return instances


def scale_boxes(boxes: Tensor, size: tuple[int, int]) -> Boxes:
    """cxcywh in [0, 1] -> XYXY pixels of a picture of `size` (h, w), clipped to it.

    Raises:
        FloatingPointError: the boxes hold NaN or infinite values.
    """
    height, width = size
    corners = box_cxcywh_to_xyxy(boxes.float())
    if not corners.isfinite().all():
        raise FloatingPointError(
            "the model predicts boxes that are NaN or infinite; look for such values in its weights (MODEL.WEIGHTS)"
        )
    scaled = Boxes(corners * corners.new_tensor([width, height, width, height]))
    scaled.clip(size)
    return scaled
