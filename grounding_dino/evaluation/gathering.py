"""What the evaluators of grounding have in common: one answer from all processes, its file, the words for prompts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)


def gathered(found: dict[Any, Any], distributed: bool) -> dict[Any, Any] | None:
    """The union of all processes' results by key on the main process, None on the others."""
    if not distributed or comm.get_world_size() == 1:
        return found
    parts = comm.gather(found, dst=0)
    if not comm.is_main_process():
        return None
    return {key: value for part in parts for key, value in part.items()}


def write_json(folder: str | None, name: str, content: object) -> None:
    """Write `content` to `name` in `folder`, which is made if it is missing; nothing without a folder."""
    if folder:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)


def true_boxes(record: Mapping[str, Any]) -> dict[int, list[list[float]]]:
    """The XYXY boxes of a record's annotations by `category_id`: the index of an expression, phrase or category."""
    boxes: dict[int, list[list[float]]] = {}
    for annotation in record["annotations"]:
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        boxes.setdefault(annotation["category_id"], []).append(list(box))
    return boxes


def expressions_of(dataset_name: str, record: Mapping[str, Any], known: Collection[Any]) -> dict[Any, Tensor]:
    """The true boxes (N, 4) XYXY of a record's expressions by their ids; N is 0 where one names nothing.

    Raises:
        ValueError: an id is another expression's, too: one of `known`.
    """
    boxes = true_boxes(record)
    found: dict[Any, Tensor] = {}
    for index, expression in enumerate(record["expression_ids"]):
        if expression in known or expression in found:
            raise ValueError(
                f"the expression id {expression!r} of {record.get('file_name')} of {dataset_name!r} is another's too; "
                "ids have to differ"
            )
        found[expression] = torch.tensor(boxes.get(index, []), dtype=torch.float32).reshape(-1, 4)
    return found


def checked_ranks(ranks: Sequence[int], measure: str) -> tuple[int, ...]:
    """The k of a measure at k, in order.

    Raises:
        ValueError: there is none, or one below 1.
    """
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks {tuple(ranks)} of {measure}@k: give positive numbers, e.g. (1, 5, 10)")
    return tuple(sorted(ranks))


def boxes_of(output: Mapping[str, Any], indices: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Boxes (N, 4) XYXY and scores (N,), fp32, that a model gave each of these expressions or phrases, the best first.

    Of equal scores the model's order stays. The output is brought to the CPU once for all of them.
    """
    instances = output["instances"]
    classes = instances.pred_classes.cpu()
    all_scores = instances.scores.detach().float().cpu()
    all_boxes = instances.pred_boxes.tensor.detach().float().cpu()
    for index in indices:
        own = torch.nonzero(classes == index).flatten()
        order = own[all_scores[own].argsort(descending=True, stable=True)]
        yield all_boxes[order], all_scores[order]


def warn_of_unanswered(known: Collection[Any], answered: Collection[Any], what: str) -> None:
    """Say in the log how many of the `known` expressions (or whatever `what` says) no model was asked for."""
    missing = len(set(known) - set(answered))
    if missing:
        logger.warning("%d of %d %s have no output and count as wrong", missing, len(known), what)


def description_prompt(cfg: CfgNode) -> str:
    """How expressions and descriptions are asked for, in words."""
    at_once = cfg.TEST.DESCRIPTIONS_PER_PROMPT
    number = {0: "all of a picture together", 1: "one alone"}.get(at_once, f"{at_once} at once")
    return f"{number} (TEST.DESCRIPTIONS_PER_PROMPT {at_once})"


def score_of_tokens(record: Mapping[str, Any]) -> str:
    """What the score of an expression of `record` is, in words; see `grounding_dino.text.phrases.category_scores`."""
    if record.get("token_score", "mean") == "max":
        return "of an expression's best token; all tokens of its prompt count where it is asked for alone"
    return "the mean of an expression's tokens"
