"""Predictions to `Instances`, and to panoptic and semantic results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy
from grounding_dino.modeling.fixed_classes import FixedClasses
from grounding_dino.modeling.mask_results import MaskResults, PicturedMasks
from grounding_dino.structures import Predictions, Prompt
from grounding_dino.text.category_scores import category_scores

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

# What a picture was asked for, with what was found: each of its prompts, or the classes of a closed-set model.
Found = Sequence[tuple[Prompt | FixedClasses, Predictions]]


def postprocess_picture(
    found: Found,
    inputs: Mapping[str, Any],
    image_size: tuple[int, int],
    detections_per_image: int,
    masks: MaskResults | None = None,
    frame: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What was found in one picture in its output size (`height`, `width` of `inputs`, else `image_size`).

    Args:
        found: predictions (Q, K), (Q, 4), with masks (Q, h, w), for each of what was asked.
        image_size: (h, w) of the picture as the model saw it.
        masks: what a model with masks gives; None for boxes alone.
        frame: (h, w) that boxes and masks are relative to, if it is not `image_size`.

    Returns:
        `instances`; with masks those of `instances`, `panoptic_seg` and `sem_seg` that are asked for, in Detectron2's
        form. With classes or categories, `instances` are the best (query, category) pairs over all prompts, with
        `pred_classes` the index into the classes or `inputs["categories"]`; where the names took several prompts there
        are also `candidates`, the best pairs of every prompt, for measures without a limit per picture (fixed AP), with
        their masks encoded (`pred_masks_rle`).
        Where the categories are `referring` expressions, `instances` are the best pairs of each prompt, scored as
        `token_score` of the inputs says. With a caption and `phrases`: the best queries of each phrase, which
        `pred_classes` names. With a caption alone: one detection a query, scored by its best token, with that query's
        `token_logits`.
    """
    size = (int(inputs.get("height", image_size[0])), int(inputs.get("width", image_size[1])))
    if frame is not None and frame != image_size:
        found = [(asked, _relative_to_picture(predictions, frame, image_size)) for asked, predictions in found]
    if masks is None or found[0][1].pred_masks is None:
        return dict(_detections(found, inputs, size, detections_per_image))
    pictured = PicturedMasks(
        torch.cat([predictions.pred_masks for _, predictions in found if predictions.pred_masks is not None]),
        image_size if frame is None else frame,
        image_size,
        size,
    )
    results: dict[str, Any] = {}
    asked = found[0][0]
    if masks.instance:
        for name, instances in _detections(found, inputs, size, detections_per_image).items():
            if masks.panoptic and isinstance(asked, FixedClasses):
                instances = instances[asked.are_things(instances.pred_classes)]
            # those of all prompts, which only measures read, would take gigabytes as bit masks
            form = dataclasses.replace(masks, mask_format="rle") if name == "candidates" else masks
            results[name] = form.instances(instances, pictured)
    if masks.panoptic or masks.semantic:
        scores = _joint_scores(found)
        if scores.isnan().any() or pictured.logits.isnan().any():  # would end as segments that are not there
            raise FloatingPointError("the model predicts scores or masks that are NaN; look for NaN in its weights")
        if masks.panoptic:
            results["panoptic_seg"] = masks.panoptic_segments(scores, pictured, _things(found))
        if masks.semantic:
            results["sem_seg"] = masks.semantic_map(scores, pictured)
    return results


def _relative_to_picture(predictions: Predictions, frame: tuple[int, int], image_size: tuple[int, int]) -> Predictions:
    (frame_height, frame_width), (height, width) = frame, image_size
    x, y = frame_width / width, frame_height / height
    boxes = predictions.pred_boxes
    return dataclasses.replace(predictions, pred_boxes=boxes * boxes.new_tensor([x, y, x, y]))


def _things(found: Found) -> frozenset[int]:
    """Which categories are things: all that text names."""
    asked = found[0][0]
    if isinstance(asked, FixedClasses):
        return asked.thing_indices()
    return frozenset(index for prompt, _ in found for index in prompt.category_indices)


def _joint_scores(found: Found) -> Tensor:
    """(queries of all prompts, categories of all prompts); a query of one prompt has no score for another's names."""
    if not all(asked.category_indices for asked, _ in found):
        raise ValueError(
            "panoptic and semantic results are of names, which a caption does not list: ask with categories, or set "
            "TEST.PANOPTIC_ON and TEST.SEMANTIC_ON False"
        )
    scores = [_scores(asked, predictions.pred_logits) for asked, predictions in found]
    count = 1 + max(max(asked.category_indices) for asked, _ in found)
    joint = scores[0].new_zeros(sum(len(part) for part in scores), count)
    first = 0
    for (asked, _), part in zip(found, scores):
        joint[first : first + len(part), list(asked.category_indices)] = part
        first += len(part)
    return joint


def _scores(asked: Prompt | FixedClasses, logits: Tensor, token_score: str = "mean") -> Tensor:
    """(Q, classes or categories of this prompt)."""
    if isinstance(asked, FixedClasses):
        return asked.scores(logits)
    return category_scores(logits, asked, token_score)


def _detections(
    found: Found, inputs: Mapping[str, Any], size: tuple[int, int], detections_per_image: int
) -> dict[str, Instances]:
    asked, predictions = found[0]
    if "categories" not in inputs and isinstance(asked, Prompt):
        if inputs.get("phrases"):
            return {"instances": phrase_instances(asked, predictions, size, detections_per_image)}
        return {"instances": caption_instances(predictions, size)}
    if inputs.get("referring"):
        # Expressions are asked for independently of each other: none may crowd out another's boxes.
        token_score = inputs.get("token_score", "mean")
        return {"instances": candidate_instances(found, size, detections_per_image, token_score)}
    candidates = candidate_instances(found, size, detections_per_image)
    if len(found) == 1:
        return {"instances": candidates}
    return {"instances": candidates[:detections_per_image], "candidates": candidates}


def category_instances(found: Found, size: tuple[int, int], detections_per_image: int) -> Instances:
    """The `detections_per_image` best of all (query, category) pairs, best first; see :func:`candidate_instances`."""
    return candidate_instances(found, size, detections_per_image)[:detections_per_image]


def candidate_instances(
    found: Found,
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
    for asked, predictions in found:
        probability = _scores(asked, predictions.pred_logits, token_score)  # (Q, categories of this prompt)
        top = probability.flatten().topk(min(detections_per_prompt, probability.numel()))
        query = top.indices // probability.shape[1]
        category = torch.tensor(asked.category_indices, device=query.device)
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
    instances.query_indices = order
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
