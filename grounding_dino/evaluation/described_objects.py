"""Described objects (D3): COCO's average precision with descriptions as categories."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

from grounding_dino.evaluation.coco_ap import RESULTS_FILE, coco_precision
from grounding_dino.evaluation.gathering import gathered, write_json

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from pycocotools.coco import COCO

logger = logging.getLogger(__name__)

# Words of a description, as the data set's own analysis groups them.
LENGTHS = {"short": (1, 3), "mid": (4, 6), "long": (7, 9), "very_long": (10, 10**6)}


class DescribedObjectsEvaluator(DatasetEvaluator):
    """AP of D3 in percent: COCOeval on the published json, each description a category of its own.

    `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl` are means over the descriptions of the json file (full, presence or
    absence). `AP_presence` and `AP_absence` are those of parts of it, `AP_short` (up to 3 words), `AP_mid` (4 to 6),
    `AP_long` (7 to 9) and `AP_very_long` those by length; what the file has no object of is left out. A picture is
    asked for the descriptions of its scenario, as its record lists them; those that the json file does not have are
    asked for and not scored. Objects of descriptions that a picture is not asked for count as missed, as in the
    published script.

    Args:
        dataset_name: a set of `load_d3`.
        max_detections: of a description in a picture that count (COCO: 100).
        distributed: gather from all processes.
        output_dir: where `coco_instances_results.json` goes: detections in COCO's results format, with the ids of
            descriptions as `category_id`, as the data set's own tools read them.
        prompt: what `protocol` says of the prompts.
    """

    def __init__(
        self,
        dataset_name: str,
        max_detections: int = 100,
        distributed: bool = True,
        output_dir: str | None = None,
        prompt: str = "",
    ) -> None:
        if max_detections < 1:
            raise ValueError(f"max_detections is {max_detections}; at least one detection has to count")
        self.dataset_name = dataset_name
        self.max_detections = max_detections
        self.distributed = distributed
        self.output_dir = output_dir
        self.prompt = prompt
        self._asked = {record["image_id"]: record["description_ids"] for record in DatasetCatalog.get(dataset_name)}
        metadata = MetadataCatalog.get(dataset_name)
        self._absence: Collection[int] = metadata.absence_ids
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self._coco = COCO(metadata.json_file)
        self._found: dict[Any, list[dict[str, Any]]] = {}

    def protocol(self) -> dict[str, str]:
        """What the numbers depend on."""
        counts = [len(asked) for asked in self._asked.values()]
        return {
            "descriptions": f"{len(self._coco.getCatIds())} scored; {min(counts)} to {max(counts)} asked for a picture",
            "prompt": self.prompt,
            "score": "the mean of a description's tokens",
            "AP": f"COCO's: IoU 0.50:0.95, the {self.max_detections} best detections of a picture and description "
            "(TEST.MAX_DETECTIONS)",
        }

    def reset(self) -> None:
        self._found = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of scored descriptions in COCO's results format."""
        scored = set(self._coco.getCatIds())
        for record, output in zip(inputs, outputs):
            number, instances = record["image_id"], output["instances"]
            asked = self._asked[number]
            corners = instances.pred_boxes.tensor.detach().double().cpu().numpy()
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
            self._found[number] = [
                {"image_id": number, "category_id": asked[place], "bbox": box, "score": score}
                for place, box, score in zip(instances.pred_classes.tolist(), boxes, instances.scores.tolist())
                if asked[place] in scored
            ]

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The averages; None on all but the main process."""
        found = gathered(self._found, self.distributed)
        if found is None:
            return None
        missing = len(set(self._coco.getImgIds()) - set(found))
        if missing:
            logger.warning("%d pictures of %s have no output; their objects are missed", missing, self.dataset_name)
        detections = [detection for number in sorted(found) for detection in found[number]]
        write_json(self.output_dir, RESULTS_FILE, detections)
        return OrderedDict(d3=self._averages(detections))

    def _averages(self, detections: list[dict[str, Any]]) -> dict[str, float]:
        table = coco_precision(self._coco, detections, "bbox", self.max_detections)
        numbers = sorted(self._coco.getCatIds())  # as COCOeval orders them
        words = [len(name.split()) for name in table.names]
        parts = {"presence": [i for i, number in enumerate(numbers) if number not in self._absence]}
        parts["absence"] = [i for i, number in enumerate(numbers) if number in self._absence]
        for name, (low, high) in LENGTHS.items():
            parts[name] = [i for i, count in enumerate(words) if low <= count <= high]
        of_parts = {f"AP_{name}": table.average(categories=places) for name, places in parts.items()}
        return {name: value for name, value in {**table.metrics(), **of_parts}.items() if not math.isnan(value)}
