"""COCO's average precision by Detectron2's evaluator, with what that lacks: zero detections, the curves, confusions."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from grounding_dino.evaluation.precision import PrecisionTable

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

RESULTS_FILE = "coco_instances_results.json"  # Detectron2's name


class CocoEvaluator(DatasetEvaluator):
    """Detectron2's `COCOEvaluator`, whose numbers are pycocotools'; without any detection they are 0 instead of NaN.

    Args:
        dataset_name: a registered data set.
        output_dir: where detections go, in COCO's results format.
        tasks: of "bbox" and "segm".
        max_detections: of a picture and category that count.
        distributed: gather from all processes.
        plots: draw precision-recall curves, bars of categories and their confusions into `output_dir`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        tasks: Sequence[str] = ("bbox",),
        max_detections: int = 100,
        distributed: bool = True,
        plots: bool = False,
    ) -> None:
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self.tasks = tuple(tasks)
        self.max_detections = max_detections
        self.distributed = distributed
        self.plots = plots
        self._coco = COCOEvaluator(
            dataset_name, self.tasks, distributed, output_dir, max_dets_per_image=self.max_detections
        )
        self._num_detections = 0

    def protocol(self) -> dict[str, str]:
        """What counts."""
        kinds = " and ".join({"bbox": "boxes", "segm": "masks"}.get(task, task) for task in self.tasks)
        return {
            "AP": f"COCO's, of {kinds}: IoU 0.50:0.95, the {self.max_detections} best detections of a picture and "
            "category (TEST.MAX_DETECTIONS)"
        }

    def reset(self) -> None:
        """Forget all detections."""
        self._coco.reset()
        self._num_detections = 0

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in a batch: inputs have `image_id`, outputs `instances`."""
        self._coco.process(inputs, outputs)
        self._num_detections += sum(len(output["instances"]) for output in outputs)

    def evaluate(self) -> OrderedDict[str, Any] | None:
        """The metrics of each task; None on all but the main process."""
        results = self._coco.evaluate()
        total = self._num_detections
        if self.distributed and comm.get_world_size() > 1:
            numbers = comm.gather(total, dst=0)
            if not comm.is_main_process():
                return None
            total = sum(numbers)
        if not results:  # no picture, or a test split without annotations
            return OrderedDict()
        results = OrderedDict(results)
        if total == 0:
            for task in self.tasks:
                table = self._table([], task)
                of_categories = zip(table.names, table.per_category()) if len(table.names) > 1 else ()
                results[task] = {**table.metrics(), **{f"AP-{name}": value for name, value in of_categories}}
        if self.plots:
            self._draw()
        return results

    def _truth(self) -> COCO:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            return COCO(PathManager.get_local_path(MetadataCatalog.get(self.dataset_name).json_file))

    def _table(self, results: Sequence[dict[str, Any]], task: str) -> PrecisionTable:
        return coco_precision(self._truth(), results, task, self.max_detections)

    def _draw(self) -> None:
        from grounding_dino.evaluation.confusion import confusion_of
        from grounding_dino.evaluation.plots import save_confusion_plot, save_precision_plots  # matplotlib

        with open(os.path.join(self.output_dir, RESULTS_FILE), encoding="utf-8") as file:
            results = json.load(file)
        for task in self.tasks:
            save_precision_plots(self.output_dir, task, self._table(results, task))
        if "bbox" in self.tasks:
            save_confusion_plot(self.output_dir, confusion_of(self._truth(), results))


def coco_precision(
    truth: COCO, results: Sequence[dict[str, Any]], task: str = "bbox", max_detections: int = 100
) -> PrecisionTable:
    """pycocotools' precision of detections in COCO's results format, of which there may be none.

    Args:
        max_detections: of a picture and category.
    """
    if task == "segm":
        # With a box present, pycocotools would take the area, and so the size class, from it and not the mask.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            found = truth.loadRes(copy.deepcopy(list(results)))
        else:  # loadRes looks at the first
            found = COCO()
            found.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, task)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    names = [str(truth.cats[number]["name"]) for number in evaluation.params.catIds]
    return PrecisionTable(evaluation.eval["precision"][..., 0], names)
