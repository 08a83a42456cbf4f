"""COCO's average precision for boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2.config import CfgNode
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
DEFAULT_MAX_DETECTIONS = 100  # of a picture and category
CATEGORY_TABLE_COLUMNS = 6


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Detections of a picture as COCO's result dicts: bbox XYWH, score, category_id (the index), segmentation (RLE)."""
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    results = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for box, score, category in zip(boxes, scores, classes, strict=True)
    ]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks, strict=True):
            encoded = mask_util.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
            encoded["counts"] = encoded["counts"].decode("ascii")  # bytes cannot go into json
            result["segmentation"] = encoded
    return results


def _average_precision(coco_eval: Any, iou: float | None = None, area: str = "all") -> float:
    """Mean precision in percent over recalls, categories and IoUs (or one IoU), NaN where nothing can be measured.

    Read off the evaluation itself: pycocotools' own summary knows only the limit of 100 detections a picture.
    """
    precision = coco_eval.eval["precision"]  # (IoUs, recalls, categories, areas, limits)
    precision = precision[:, :, :, coco_eval.params.areaRngLbl.index(area), -1]
    if iou is not None:
        precision = precision[np.isclose(coco_eval.params.iouThrs, iou)]
    measured = precision[precision > -1]
    return float(np.mean(measured) * 100) if measured.size else float("nan")


class COCOEvaluator(DatasetEvaluator):
    """Box and mask AP of a data set in COCO's format, or of any that can be written in it.

    The model's outputs are dicts with "instances": `pred_boxes`, `scores`, `pred_classes` and perhaps `pred_masks`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set. With `json_file` in its metadata, that is the ground truth;
                otherwise the data set is written as COCO json into `output_dir`.
            tasks: of "bbox" and "segm"; None takes what the predictions have.
            distributed: gather the predictions of all processes; otherwise each evaluates its own.
            output_dir: where to write the predictions (coco_instances_results.json, instances_predictions.pth).
            max_dets_per_image: the number of best detections that count, 100 if None.
            use_fast_impl: accepted for the sake of callers; pycocotools is used, with the same numbers.
            allow_cached_coco: use the COCO json of an earlier run.

        Raises:
            NotImplementedError: keypoints are asked for.
            ValueError: a json file has to be written, but there is no `output_dir`.
        """
        if kpt_oks_sigmas or "keypoints" in (tasks or ()):
            raise NotImplementedError("Evaluating keypoints needs an installed upstream Detectron2.")
        if isinstance(tasks, CfgNode):
            logger.warning("COCOEvaluator got a config as its tasks, which is out of date: they are inferred instead")
            tasks = None
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        limit = DEFAULT_MAX_DETECTIONS if max_dets_per_image is None else max_dets_per_image
        # pycocotools sorts its limits; the metrics are read at the last.
        self._max_dets_per_image = [*(smaller for smaller in (1, 10) if smaller < limit), limit]
        self._cpu_device = torch.device("cpu")
        self._predictions: list[dict[str, Any]] = []
        self._results: OrderedDict[str, Any] = OrderedDict()
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            json_file = self._write_ground_truth(dataset_name, allow_cached_coco)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self._coco_api = COCO(PathManager.get_local_path(json_file))
        # The files of test splits have no annotations: the predictions are only written.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _write_ground_truth(self, dataset_name: str, allow_cached: bool) -> str:
        if self._output_dir is None:
            raise ValueError(
                f"data set {dataset_name!r} has no json_file in its metadata, so that it has to be written in COCO "
                "format: give COCOEvaluator an output_dir."
            )
        path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        if comm.is_main_process():
            convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
        comm.synchronize()
        self._metadata.json_file = path
        return path

    def reset(self) -> None:
        """Forget the predictions."""
        self._predictions = []

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in a batch: inputs have "image_id", outputs "instances"."""
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                detections = instances_to_coco_json(instances, record["image_id"])
                self._predictions.append({"image_id": record["image_id"], "instances": detections})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> OrderedDict[str, Any]:
        """AP of each task, in percent.

        Args:
            img_ids: evaluate these pictures only.

        Returns:
            task -> AP, AP50, AP75, APs, APm, APl and "AP-name" of each class; empty on processes but the first,
            without predictions, and without annotations.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        self._results = OrderedDict()
        if not predictions:
            logger.warning("COCOEvaluator did not receive any predictions")
            return self._results
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
                torch.save(predictions, file)
        self._eval_predictions(predictions, img_ids)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None) -> None:
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        tasks = self._tasks or (TASKS if any("segmentation" in result for result in results) else TASKS[:1])
        results = self._restore_category_ids(results)
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                json.dump(results, file)
        if not self._do_evaluation:
            logger.info("the annotations are not public: the predictions are written, but not evaluated")
            return
        for task in tasks:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}; choose from {TASKS}.")
            coco_eval = self._evaluate_task(results, task, img_ids)
            self._results[task] = self._derive_coco_results(coco_eval, task, self._metadata.get("thing_classes"))

    def _restore_category_ids(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results with the ids of the json file in place of class indices."""
        id_map: Mapping[int, int] | None = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return results
        original = {index: category_id for category_id, index in id_map.items()}
        unknown = {result["category_id"] for result in results} - original.keys()
        if unknown:
            raise ValueError(
                f"the model predicted class {min(unknown)}, but data set {self._metadata.name!r} has only "
                f"{len(original)} classes: the model's number of classes does not fit it."
            )
        return [{**result, "category_id": original[result["category_id"]]} for result in results]

    def _evaluate_task(self, results: list[dict[str, Any]], task: str, img_ids: Sequence[int] | None) -> Any:
        if task == "segm":
            # With a box present, pycocotools would take the area, and so the size class, from it and not the mask.
            results = [{k: v for k, v in r.items() if k != "bbox"} for r in results if "segmentation" in r]
        if not results:
            return None
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            detections = self._coco_api.loadRes(copy.deepcopy(results))
            coco_eval = COCOeval(self._coco_api, detections, task)
            coco_eval.params.maxDets = self._max_dets_per_image
            if img_ids is not None:
                coco_eval.params.imgIds = list(img_ids)
            coco_eval.evaluate()
            coco_eval.accumulate()
        logger.debug("pycocotools on %s:\n%s", task, log.getvalue())
        return coco_eval

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The metrics of a task from an accumulated `COCOeval`; NaN where it is None, for want of predictions."""
        if coco_eval is None:
            logger.warning("no predictions to evaluate for %s", iou_type)
            return {metric: float("nan") for metric in METRICS}
        results = {
            "AP": _average_precision(coco_eval),
            "AP50": _average_precision(coco_eval, iou=0.5),
            "AP75": _average_precision(coco_eval, iou=0.75),
            "APs": _average_precision(coco_eval, area="small"),
            "APm": _average_precision(coco_eval, area="medium"),
            "APl": _average_precision(coco_eval, area="large"),
        }
        logger.info("results for %s:\n%s", iou_type, create_small_table(results))
        if any(not np.isfinite(value) for value in results.values()):
            logger.info("some metrics cannot be computed and are shown as NaN")
        if class_names is None or len(class_names) <= 1:
            return results
        per_category = _per_category_precision(coco_eval, class_names)
        logger.info("AP per category for %s:\n%s", iou_type, _category_table(per_category))
        results.update({f"AP-{name}": value for name, value in per_category})
        return results


def _per_category_precision(coco_eval: Any, class_names: Sequence[str]) -> list[tuple[str, float]]:
    precisions = coco_eval.eval["precision"]  # (IoUs, recalls, categories, areas, limits)
    if precisions.shape[2] != len(class_names):
        raise ValueError(
            f"the json file has {precisions.shape[2]} categories, but the metadata names {len(class_names)} classes."
        )
    per_category = []
    for index, name in enumerate(class_names):
        precision = precisions[:, :, index, 0, -1]  # area 0 is "all"
        measured = precision[precision > -1]
        per_category.append((str(name), float(np.mean(measured) * 100) if measured.size else float("nan")))
    return per_category


def _category_table(per_category: Sequence[tuple[str, float]]) -> str:
    cells: list[Any] = list(itertools.chain.from_iterable(per_category))
    columns = min(CATEGORY_TABLE_COLUMNS, len(cells))
    cells.extend([None] * (-len(cells) % columns))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return tabulate(rows, headers=["category", "AP"] * (columns // 2), tablefmt="pipe", floatfmt=".3f", numalign="left")
