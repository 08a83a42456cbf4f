"""Referring expressions: is the best-scored box the one that the words name?"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from grounding_dino.evaluation.gathering import (
    boxes_of,
    checked_ranks,
    expressions_of,
    gathered,
    score_of_tokens,
    warn_of_unanswered,
    write_json,
)
from grounding_dino.layers.box_ops import box_iou

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator

logger = logging.getLogger(__name__)


class RefExpEvaluator(DatasetEvaluator):
    """Share of expressions for which a right box (IoU with the truth) is among the k best-scored ones, in percent.

    Inputs are records of `load_refexp` (one expression each; several in one prompt count one by one), outputs the
    model's `instances`, whose `pred_classes` index the record's expressions. Of several true boxes of an expression any
    is right: a detection's IoU is the largest of its IoUs with them. An expression without an output counts as wrong.
    The results are `{"refexp": {"P@1", "P@5", "P@10", "mIoU"}}`; mIoU is the mean IoU of the best-scored box.

    Args:
        dataset_name: a registered set of referring expressions.
        ranks: the k of precision@k.
        iou_threshold: from which IoU on a box is right (RefCOCO's metric: 0.5).
        distributed: gather from all processes.
        output_dir: where `refexp_overlaps.json` goes: per expression id the IoU of its best boxes; None: nowhere.
        prompt: what `protocol` says of the prompts.

    Raises:
        ValueError: no usable rank; an expression id that occurs twice, or an expression without a box.
    """

    def __init__(
        self,
        dataset_name: str,
        ranks: Sequence[int] = (1, 5, 10),
        iou_threshold: float = 0.5,
        distributed: bool = True,
        output_dir: str | None = None,
        prompt: str = "",
    ) -> None:
        self.dataset_name = dataset_name
        self.ranks = checked_ranks(ranks, "precision")
        self.iou_threshold = iou_threshold
        self.distributed = distributed
        self.output_dir = output_dir
        self.prompt = prompt
        self._truth: dict[Any, torch.Tensor] = {}  # per expression id the boxes (N, 4) that are right
        self._score = ""
        for record in DatasetCatalog.get(dataset_name):
            self._score = score_of_tokens(record)
            self._add_truth(record)
        self._overlaps: dict[Any, list[float]] = {}

    def _add_truth(self, record: dict[str, Any]) -> None:
        for expression, boxes in expressions_of(self.dataset_name, record, self._truth).items():
            if not len(boxes):
                where = f"{record.get('file_name')} of {self.dataset_name!r}"
                raise ValueError(f"the expression {expression!r} of {where} has no box; leave it out")
            self._truth[expression] = boxes

    def protocol(self) -> dict[str, str]:
        """What the numbers depend on."""
        ranks = ", ".join(map(str, self.ranks))
        return {
            "expressions": str(len(self._truth)),
            "prompt": self.prompt,
            "score": self._score,
            "match": f"IoU >= {self.iou_threshold} of one of the best {ranks} boxes with any true one",
        }

    def reset(self) -> None:
        self._overlaps = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take the overlaps of the best boxes of every expression with its truth, best-scored first."""
        for record, output in zip(inputs, outputs):
            expressions = record["expression_ids"]
            for expression, (boxes, _) in zip(expressions, boxes_of(output, range(len(expressions)))):
                overlaps = box_iou(boxes[: self.ranks[-1]], self._truth[expression])  # (k, N)
                self._overlaps[expression] = overlaps.amax(dim=1).tolist()

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The precisions; None on all but the main process."""
        overlaps = gathered(self._overlaps, self.distributed)
        if overlaps is None:
            return None
        if not self._truth:
            raise ValueError(f"the data set {self.dataset_name!r} has no referring expression to score")
        warn_of_unanswered(self._truth, overlaps, "expressions")
        total = len(self._truth)
        results = {
            f"P@{rank}": 100.0 * sum(self._is_right(values[:rank]) for values in overlaps.values()) / total
            for rank in self.ranks
        }
        results["mIoU"] = 100.0 * sum(values[0] for values in overlaps.values() if values) / total
        logger.info("%s: %s", self.dataset_name, ", ".join(f"{key} {value:.2f}" for key, value in results.items()))
        write_json(self.output_dir, "refexp_overlaps.json", overlaps)
        return OrderedDict(refexp=results)

    def _is_right(self, overlaps: Sequence[float]) -> bool:
        return any(value >= self.iou_threshold for value in overlaps)
