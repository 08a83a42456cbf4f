"""The evaluator of LVIS: standard and fixed AP, of boxes and masks, of one round of inference."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from grounding_dino.evaluation.lvis_ap import (
    FIXED_DETECTIONS,
    STANDARD_DETECTIONS,
    Detections,
    LVISTruth,
    TopPerCategory,
    lvis_metrics,
    lvis_precision,
)
from grounding_dino.structures import RleMasks

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

RESULTS_FILE = "lvis_instances_results.json"
_WRITTEN_AT_ONCE = 100_000


class LVISEvaluator(DatasetEvaluator):
    """AP by LVIS's rules: `{"bbox": {...}, "bbox_fixed": {...}}`, each AP, AP50, ..., APr, APc, APf in percent.

    "bbox" counts the 300 best `instances` of a picture; "bbox_fixed" the 10000 best of each category over the data set,
    out of the `candidates` of the model's output (the best of every prompt, where names took several), else out of its
    `instances`. With masks "segm" and "segm_fixed" measure those of the same detections, `pred_masks` (N, H, W) or
    encoded `pred_masks_rle`; only encoded ones are kept.

    Args:
        dataset_name: a registered set with the `json_file`, in LVIS v1's format, in its metadata.
        tasks: of "bbox" and "segm".
        output_dir: where the detections that "bbox" counts go, in COCO's results format; None: nowhere.
        distributed: gather from all processes.
        plots: draw precision-recall curves and bars of categories into `output_dir`.
        fixed_detections: of a category in "bbox_fixed".

    Raises:
        ValueError: no `json_file`, or one in another format.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        tasks: Sequence[str] = ("bbox",),
        distributed: bool = True,
        plots: bool = False,
        fixed_detections: int = FIXED_DETECTIONS,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if not json_file:
            raise ValueError(f"data set {dataset_name!r} has no json_file in its metadata, the truth of its AP")
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
            self.truth = LVISTruth(json.load(file), masks="segm" in tasks)
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self.tasks = tuple(tasks)
        self.distributed = distributed
        self.plots = plots and output_dir is not None
        self.fixed_detections = fixed_detections
        self._category_of_class = self._match_classes(metadata.get("thing_dataset_id_to_contiguous_id"))
        self.reset()

    def _match_classes(self, id_map: dict[int, int] | None) -> NDArray[np.int64]:
        """The truth's category of each class of the model; without a map the classes are in the order of the ids."""
        if id_map is None:
            return np.arange(len(self.truth.category_ids))
        ids = sorted(id_map, key=lambda number: id_map[number])
        return self.truth.category_indices(np.array(ids, dtype=np.int64))

    def protocol(self) -> dict[str, str]:
        """What counts."""
        kinds = " and ".join({"bbox": "boxes", "segm": "masks"}[task] for task in self.tasks)
        return {
            "standard AP": f"{kinds}, IoU 0.50:0.95, the {STANDARD_DETECTIONS} best detections of a picture, federated",
            "fixed AP": f"the {self.fixed_detections} best detections of each category over all pictures, of the "
            "candidates of all prompts",
        }

    def reset(self) -> None:
        """Forget all detections."""
        self._standard: list[Detections] = []
        self._fixed = TopPerCategory(len(self.truth.names), self.fixed_detections)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in a batch: inputs have `image_id`, outputs `instances` and perhaps `candidates`."""
        for record, output in zip(inputs, outputs):
            image = int(self.truth.image_indices(np.array([record["image_id"]], dtype=np.int64))[0])
            rows = self._rows(output["instances"], image)
            best = np.argsort(-rows.scores, kind="stable")[:STANDARD_DETECTIONS]
            self._standard.append(rows[best])
            self._fixed.add(self._rows(output["candidates"], image) if "candidates" in output else rows)

    def _rows(self, instances: Instances, image: int) -> Detections:
        boxes = BoxMode.convert(instances.pred_boxes.tensor.detach().cpu(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        classes = instances.pred_classes.cpu().numpy()
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self._category_of_class):
            raise ValueError(
                f"the model found classes {classes.min()} to {classes.max()} in {self.dataset_name!r}, which has "
                f"{len(self._category_of_class)}: it was not asked for the names of this data set"
            )
        masks = self._masks(instances, image) if "segm" in self.tasks else None
        return Detections(
            images=np.full(len(classes), image, dtype=np.int32),
            categories=self._category_of_class[classes].astype(np.int32),
            ranks=np.arange(len(classes), dtype=np.int32),
            scores=instances.scores.detach().float().cpu().numpy(),
            boxes=boxes.float().numpy(),
            masks=masks,
        )

    def _masks(self, instances: Instances, image: int) -> NDArray[np.object_]:
        """The `counts` (N,) of a picture's encoded masks."""
        found = instances.pred_masks_rle if instances.has("pred_masks_rle") else RleMasks.encode(instances.pred_masks)
        wrong = [rle["size"] for rle in found if tuple(rle["size"]) != self.truth.sizes[image]]
        if wrong:
            raise ValueError(
                f"the masks of the picture {self.truth.image_ids[image]} have the size {list(wrong[0])} (height, "
                f"width), but {self.dataset_name!r} says {list(self.truth.sizes[image])}"
            )
        masks = np.empty(len(found), dtype=object)
        masks[:] = [rle["counts"] for rle in found]
        return masks

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The metrics; None on all but the main process."""
        standard, fixed = Detections.joined(self._standard), self._fixed.result()
        if self.distributed and comm.get_world_size() > 1:
            gathered = comm.gather((standard, fixed), dst=0)
            if not comm.is_main_process():
                return None
            standard = Detections.joined([part for part, _ in gathered])
            merged = TopPerCategory(len(self.truth.names), self.fixed_detections)
            for _, part in gathered:
                merged.add(part)
            fixed = merged.result()
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            self._write(standard, os.path.join(self.output_dir, RESULTS_FILE))
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        counted = {f"{task}{kind}": rows for task in self.tasks for kind, rows in (("", standard), ("_fixed", fixed))}
        for task, detections in counted.items():
            table = lvis_precision(self.truth, detections, masks=task.startswith("segm"))
            results[task] = lvis_metrics(table, self.truth.groups)
            logger.info("%s %s: %s", self.dataset_name, task, _in_words(results[task]))
            results[task].update({f"AP-{name}": ap for name, ap in zip(table.names, table.per_category())})
            if self.plots and self.output_dir:
                from grounding_dino.evaluation.plots import save_precision_plots  # matplotlib is slow to import

                save_precision_plots(self.output_dir, task, table)
        return results

    def _write(self, rows: Detections, path: str) -> None:
        """COCO's results format: a list of image_id, category_id, bbox (XYWH), score and perhaps segmentation."""
        with open(path, "w", encoding="utf-8") as file:
            file.write("[")
            for number, text in enumerate(self._written(rows)):
                file.write((",\n" if number else "\n") + text)
            file.write("\n]\n")

    def _written(self, rows: Detections) -> Iterator[str]:
        for start in range(0, len(rows), _WRITTEN_AT_ONCE):
            part = rows[start : start + _WRITTEN_AT_ONCE]
            columns = (self.truth.image_ids[part.images], self.truth.category_ids[part.categories], part.boxes)
            encoded = None if part.masks is None else self.truth.encoded(part.images, part.masks)
            values = zip(*(column.tolist() for column in (*columns, part.scores)))
            for row, (image_id, category_id, box, score) in enumerate(values):
                result = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
                yield json.dumps(result if encoded is None else {**result, "segmentation": encoded[row]})


def _in_words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
