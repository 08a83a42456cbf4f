"""COCO's average precision by Detectron2's evaluator, with what that lacks.

That is zero detections, the curves, confusions, masks that a model gives encoded, objects without a mask, and sets
whose things are not the first classes of the model.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from grounding_dino.evaluation.precision import PrecisionTable

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"  # Detectron2's name


class CocoEvaluator(DatasetEvaluator):
    """Detectron2's `COCOEvaluator`, whose numbers are pycocotools'; without any detection they are 0 instead of NaN.

    Masks are `pred_masks` (N, H, W) or, encoded, `pred_masks_rle`; only encoded ones are kept. The truth of Cityscapes'
    instances is evaluated in the same way, by COCO's AP of its json, which is not the measure of Cityscapes' own
    scripts. Where the set's things are some of the model's classes (panoptic sets), detections of others are left out.

    Args:
        dataset_name: a registered data set.
        output_dir: where detections go, in COCO's results format.
        tasks: of "bbox" and "segm"; without a mask in the truth there is no "segm".
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
        self.max_detections = max_detections
        self.distributed = distributed
        self.plots = plots
        name, self._thing_of_class = _of_things(dataset_name)
        self._coco = _Evaluator(name, tuple(tasks), distributed, output_dir, max_dets_per_image=self.max_detections)
        self.tasks = self._coco.tasks_with_truth()
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
        found = [{"instances": self._things(output["instances"])} for output in outputs]
        self._coco.process(inputs, found)
        self._num_detections += sum(len(output["instances"]) for output in found)

    def _things(self, instances: Instances) -> Instances:
        """With the data set's own numbers of things; see :func:`_of_things`."""
        if not self._thing_of_class:
            return instances
        classes = [self._thing_of_class.get(index, -1) for index in instances.pred_classes.tolist()]
        numbered = Instances(instances.image_size, **instances.get_fields())
        numbered.pred_classes = torch.tensor(classes, dtype=torch.int64, device=instances.pred_classes.device)
        return numbered if -1 not in classes else numbered[numbered.pred_classes >= 0]

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
            truth = COCO(PathManager.get_local_path(MetadataCatalog.get(self.dataset_name).json_file))
        if "segm" in self.tasks:
            _complete_masks(truth)
        return truth

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


class _Evaluator(COCOEvaluator):
    """Takes encoded masks as well, and objects without a mask in the truth."""

    def tasks_with_truth(self) -> tuple[str, ...]:
        """The tasks, without "segm" where the truth has no masks; objects without one get an empty one."""
        tasks = tuple(self._tasks or ())
        if "segm" in tasks and not _complete_masks(self._coco_api):
            logger.warning("%s has no masks: boxes alone are evaluated", self._metadata.name)
            tasks = tuple(task for task in tasks if task != "segm")
        self._tasks = tasks
        return tasks

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As Detectron2's, and `pred_masks_rle`, a list of RLE, in place of `pred_masks`."""
        for record, output in zip(inputs, outputs):
            instances = output["instances"]
            encoded = instances.pred_masks_rle if instances.has("pred_masks_rle") else None
            if encoded is None:
                super().process([record], [output])
                continue
            boxes = Instances(
                instances.image_size,
                **{key: value for key, value in instances.get_fields().items() if key != "pred_masks_rle"},
            )
            detections = instances_to_coco_json(boxes.to(torch.device("cpu")), record["image_id"])
            for detection, mask in zip(detections, encoded, strict=True):
                detection["segmentation"] = mask
            self._predictions.append({"image_id": record["image_id"], "instances": detections})


def _complete_masks(truth: COCO) -> bool:
    """Give objects without a mask an empty one, which nothing matches; False where no object has one.

    pycocotools ends with an error on such an object.
    """
    annotations = truth.dataset.get("annotations", [])
    bare = [annotation for annotation in annotations if not annotation.get("segmentation")]
    if annotations and len(bare) == len(annotations):
        return False
    for annotation in bare:
        image = truth.imgs[annotation["image_id"]]
        empty = coco_mask.encode(np.zeros((image["height"], image["width"]), dtype=np.uint8, order="F"))
        annotation["segmentation"] = {"size": list(empty["size"]), "counts": empty["counts"].decode("ascii")}
    if bare:
        logger.warning(
            "%d of %d objects (first: annotation %s) have no mask, so that none can match theirs",
            *(len(bare), len(annotations), bare[0].get("id")),
        )
    return True


def _of_things(dataset_name: str) -> tuple[str, dict[int, int]]:
    """A set with metadata of its things alone, counted from 0, and the number of each class of the model that is one.

    Detectron2's evaluator wants contiguous numbers and as many names; the set itself, and {}, where it has both.
    """
    metadata = MetadataCatalog.get(dataset_name)
    id_map, names = metadata.get("thing_dataset_id_to_contiguous_id"), metadata.get("thing_classes")
    if not id_map or not names or (len(names) == len(id_map) and sorted(id_map.values()) == list(range(len(names)))):
        return dataset_name, {}
    number_of = {index: number for number, index in enumerate(sorted(id_map.values()))}
    MetadataCatalog.pop(f"{dataset_name}.things", None)
    MetadataCatalog.get(f"{dataset_name}.things").set(
        json_file=metadata.json_file,
        thing_classes=[names[index] for index in number_of],
        thing_dataset_id_to_contiguous_id={key: number_of[index] for key, index in id_map.items()},
    )
    return f"{dataset_name}.things", number_of


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
