"""Phrases of captions (Flickr30k Entities): is a right box among the best of each phrase?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.evaluation.gathering import (
    boxes_of,
    checked_ranks,
    gathered,
    true_boxes,
    warn_of_unanswered,
    write_json,
)
from grounding_dino.layers.box_ops import box_iou

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor

PROTOCOLS = ("any", "merged")


@dataclass(frozen=True)
class _Phrase:
    text: str
    boxes: Tensor  # (N, 4) XYXY
    types: tuple[str, ...]


class PhraseGroundingEvaluator(DatasetEvaluator):
    """Recall at k of phrases, in percent, by MDETR's two protocols (Kamath et al., arXiv:2104.12763, section 4.2).

    `R@k` (any box): one of the k best boxes of the phrase has an IoU of `iou_threshold` with any of its true boxes.
    `merged_R@k` (merged boxes): with the smallest box around all of its true boxes. A phrase that recurs in several
    captions of a picture counts each time, one without a box not at all. Where records have `phrase_types`, each type
    has its recall too (`R@1-people`), and a phrase of two types counts for both.

    Inputs are captions with phrases, outputs the model's `instances`, whose `pred_classes` number the phrases.

    Args:
        dataset_name: a registered set of captions, each with an `image_id` of its own.
        ranks: the k of recall at k.
        iou_threshold: from which IoU on a box is right.
        distributed: gather from all processes.
        output_dir: where `phrase_ranks.json` goes: per caption and phrase the place of the first right box, from 0, by
            both protocols; null where none of the looked at boxes is right.

    Raises:
        ValueError: no usable rank; an image id that occurs twice, or no phrase with a box.
    """

    def __init__(
        self,
        dataset_name: str,
        ranks: Sequence[int] = (1, 5, 10),
        iou_threshold: float = 0.5,
        distributed: bool = True,
        output_dir: str | None = None,
    ) -> None:
        self.dataset_name = dataset_name
        self.ranks = checked_ranks(ranks, "recall")
        self.iou_threshold = iou_threshold
        self.distributed = distributed
        self.output_dir = output_dir
        self._truth: dict[Any, dict[int, _Phrase]] = {}  # per image id (of a caption) its phrases by their places
        for record in DatasetCatalog.get(dataset_name):
            if record["image_id"] in self._truth:
                raise ValueError(
                    f"the id {record['image_id']!r} of {record.get('file_name')} in {dataset_name!r} is another "
                    "caption's too; ids have to differ"
                )
            self._truth[record["image_id"]] = self._phrases(record)
        if not any(self._truth.values()):
            raise ValueError(f"the data set {dataset_name!r} has no phrase with a box; there is nothing to score")
        self._ranks: dict[Any, dict[int, dict[str, Any]]] = {}

    def _phrases(self, record: dict[str, Any]) -> dict[int, _Phrase]:
        boxes = true_boxes(record)
        types = record.get("phrase_types") or [[]] * len(record["phrases"])
        phrases = {}
        for index, spans in enumerate(record["phrases"]):
            nested = [spans] if isinstance(spans[0], int) else spans
            text = " ".join(record["caption"][start:end] for start, end in nested)
            if index in boxes:
                phrases[index] = _Phrase(text, torch.tensor(boxes[index], dtype=torch.float32), tuple(types[index]))
        return phrases

    def protocol(self) -> dict[str, str]:
        """What the numbers depend on."""
        return {
            "phrases": f"{sum(map(len, self._truth.values()))} in {len(self._truth)} captions",
            "prompt": "the caption, whole",
            "score": "each phrase ranks its boxes by the mean score of its tokens",
            "match": f"IoU >= {self.iou_threshold} with any box of the phrase; merged: with the box around them all",
        }

    def reset(self) -> None:
        self._ranks = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Look up at which place of its ranking each phrase has its first right box."""
        for record, output in zip(inputs, outputs):
            phrases = self._truth[record["image_id"]]
            if not phrases:
                continue
            found = {}
            for (index, phrase), (boxes, _) in zip(phrases.items(), boxes_of(output, phrases)):
                found[index] = {"phrase": phrase.text, **self._first_right(boxes[: self.ranks[-1]], phrase.boxes)}
            self._ranks[record["image_id"]] = found

    def _first_right(self, boxes: Tensor, truth: Tensor) -> dict[str, int | None]:
        """By protocol the place of the first right one of `boxes` (k, 4), None where there is none."""
        around = torch.cat([truth[:, :2].amin(0), truth[:, 2:].amax(0)])[None]
        places: dict[str, int | None] = {}
        for protocol, targets in zip(PROTOCOLS, (truth, around)):
            right = torch.nonzero((box_iou(boxes, targets) >= self.iou_threshold).any(1)).flatten()
            places[protocol] = int(right[0]) if len(right) else None
        return places

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The recalls; None on all but the main process."""
        ranks = gathered(self._ranks, self.distributed)
        if ranks is None:
            return None
        scored = [caption for caption, phrases in self._truth.items() if phrases]
        warn_of_unanswered(scored, ranks, "captions")
        results: dict[str, float] = {}
        for protocol in PROTOCOLS:
            prefix = "" if protocol == "any" else f"{protocol}_"
            for group, places in self._places(ranks, protocol).items():
                suffix = f"-{group}" if group else ""
                for rank in self.ranks:
                    hits = sum(place is not None and place < rank for place in places)
                    results[f"{prefix}R@{rank}{suffix}"] = 100.0 * hits / len(places)
        write_json(self.output_dir, "phrase_ranks.json", {key: list(found.values()) for key, found in ranks.items()})
        return OrderedDict(flickr30k=results)

    def _places(self, ranks: dict[Any, dict[int, dict[str, Any]]], protocol: str) -> dict[str, list[int | None]]:
        """The places of first right boxes of all phrases (under ""), and of those of each type."""
        groups: dict[str, list[int | None]] = {"": []}
        for caption, phrases in self._truth.items():
            found = ranks.get(caption)
            for index, phrase in phrases.items():
                place = found[index][protocol] if found is not None else None
                for group in ("", *phrase.types):
                    groups.setdefault(group, []).append(place)
        return groups
