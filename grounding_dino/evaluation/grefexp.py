"""Generalized referring expressions (gRefCOCO): any number of things may be meant, also none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from grounding_dino.evaluation.gathering import (
    boxes_of,
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


class GeneralizedRefExpEvaluator(DatasetEvaluator):
    """Precision@(F1=1, IoU>=0.5), N-acc and T-acc of GREC (He et al., arXiv:2308.16182), in percent.

    A detection counts as found from `score_threshold` on. Found and true boxes are paired one to one, the best IoU
    first, down to `iou_threshold`. `P@(F1=1)` is the share of expressions for which every true box is paired and no
    found one is left over; an expression that names nothing is right if nothing is found. `N_acc` is the share of the
    latter among those that name nothing, `T_acc` the share of the others for which anything is found. Either is left
    out where the data set has no such expression. The definition is followed; the authors' script pairs by generalized
    IoU, which is at most the IoU, and mmdet's looks at the first of an expression's true boxes only.

    Inputs are records of `load_refexp` with `targets_optional`, outputs as for `RefExpEvaluator`.

    Args:
        dataset_name: a registered set of expressions.
        score_threshold: of a detection that counts as found (published: 0.7).
        iou_threshold: of a pair.
        distributed: gather from all processes.
        output_dir: where `grefexp.json` goes: per expression id the numbers of found, true and paired boxes.
        prompt: what `protocol` says of the prompts.

    Raises:
        ValueError: an expression id that occurs twice.
    """

    def __init__(
        self,
        dataset_name: str,
        score_threshold: float = 0.7,
        iou_threshold: float = 0.5,
        distributed: bool = True,
        output_dir: str | None = None,
        prompt: str = "",
    ) -> None:
        self.dataset_name = dataset_name
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.distributed = distributed
        self.output_dir = output_dir
        self.prompt = prompt
        self._truth: dict[Any, torch.Tensor] = {}  # per expression id its boxes (N, 4), N may be 0
        self._score = ""
        for record in DatasetCatalog.get(dataset_name):
            self._score = score_of_tokens(record)
            self._truth.update(expressions_of(dataset_name, record, self._truth))
        self._counts: dict[Any, dict[str, int]] = {}

    def protocol(self) -> dict[str, str]:
        """What the numbers depend on."""
        return {
            "expressions": f"{len(self._truth)}, {sum(not len(b) for b in self._truth.values())} of them name nothing",
            "prompt": self.prompt,
            "score": self._score,
            "detections": f"those with a score of at least {self.score_threshold}",
            "match": f"one to one, best IoU first, IoU >= {self.iou_threshold}",
        }

    def reset(self) -> None:
        self._counts = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count the found boxes of every expression, and those that pair up with true ones."""
        for record, output in zip(inputs, outputs):
            expressions = record["expression_ids"]
            for expression, (boxes, scores) in zip(expressions, boxes_of(output, range(len(expressions)))):
                found = boxes[scores >= self.score_threshold]
                truth = self._truth[expression]
                paired = count_pairs(box_iou(found, truth), self.iou_threshold)
                self._counts[expression] = {"found": len(found), "true": len(truth), "paired": paired}

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The shares; None on all but the main process."""
        counts = gathered(self._counts, self.distributed)
        if counts is None:
            return None
        if not self._truth:
            raise ValueError(f"the data set {self.dataset_name!r} has no referring expression to score")
        warn_of_unanswered(self._truth, counts, "expressions")
        answers = [(len(boxes), counts.get(expression)) for expression, boxes in self._truth.items()]
        right = [found is not None and found["found"] == number == found["paired"] for number, found in answers]
        results = {"P@(F1=1)": _percent(right)}
        empty = [found is not None and found["found"] == 0 for number, found in answers if not number]
        named = [found is not None and found["found"] > 0 for number, found in answers if number]
        results.update({key: _percent(part) for key, part in (("N_acc", empty), ("T_acc", named)) if part})
        write_json(self.output_dir, "grefexp.json", counts)
        return OrderedDict(grefexp=results)


def _percent(values: Sequence[bool]) -> float:
    return 100.0 * sum(values) / len(values)


def count_pairs(overlaps: torch.Tensor, threshold: float) -> int:
    """Pairs of found and true boxes, (F, N) IoUs: one to one, the best left first, while IoU >= threshold."""
    overlaps = overlaps.clone()
    pairs = 0
    while overlaps.numel() and overlaps.max() >= threshold:
        row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
        overlaps[row], overlaps[:, column] = -1, -1
        pairs += 1
    return pairs
