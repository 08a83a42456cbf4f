"""The evaluator of panoptic segmentation: panoptic quality against a json and PNGs in COCO's panoptic format."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.data.segmentation_maps import check_segment_ids, read_panoptic_map, write_panoptic_map
from grounding_dino.evaluation.gathering import write_json
from grounding_dino.evaluation.panoptic_quality import (
    MAX_UNJUDGED,
    MIN_IOU,
    PanopticCounts,
    Segments,
    count_segments,
    panoptic_metrics,
)

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "panoptic_predictions.json"
PREDICTIONS_FOLDER = "panoptic_predictions"


class PanopticTruth:
    """A json in COCO's panoptic format with the folder of its PNGs, which are read one at a time.

    Attributes:
        category_ids: of the K categories, in ascending order.
        names: theirs.
        is_thing: (K,) bool.

    Raises:
        ValueError: the json lacks a part, or has an annotation twice or of an unknown category.
    """

    def __init__(self, json_file: str, root: str) -> None:
        self.path = json_file
        self.root = root
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
            content = json.load(file)
        missing = [part for part in ("annotations", "categories") if part not in content]
        if missing:
            raise ValueError(f"{json_file!r} has no {missing[0]!r}: it is no truth in COCO's panoptic format")
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [int(category["id"]) for category in categories]
        self.names = [str(category["name"]) for category in categories]
        self.is_thing = np.array([bool(category.get("isthing", 1)) for category in categories], dtype=bool)
        self.index_of = {number: index for index, number in enumerate(self.category_ids)}
        self._annotations: dict[str, dict[str, Any]] = {}
        for annotation in content["annotations"]:
            self._add(annotation)

    def __len__(self) -> int:
        return len(self._annotations)

    def _add(self, annotation: dict[str, Any]) -> None:
        key = str(annotation["image_id"])
        if key in self._annotations:
            raise ValueError(f"{self.path!r} has two annotations of the picture {key}; remove one")
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in self.index_of:
                raise ValueError(
                    f"the segment {segment['id']} of {annotation['file_name']!r} in {self.path!r} has the category "
                    f"{segment['category_id']}, which is not among the file's categories"
                )
        self._annotations[key] = annotation

    def annotation(self, image_id: Any) -> dict[str, Any]:
        """The entry of a picture, whose id may be a number or a string.

        Raises:
            ValueError: there is none.
        """
        found = self._annotations.get(str(image_id))
        if found is None:
            raise ValueError(
                f"{self.path!r} has no annotation of the picture {image_id!r}: it is not the truth of this data set"
            )
        return found

    def segments(self, image_id: Any) -> Segments:
        """The true segments of a picture.

        Raises:
            ValueError: the ids of the PNG are not those of the json, or as :meth:`annotation`.
        """
        annotation = self.annotation(image_id)
        listed = annotation["segments_info"]
        numbers = [int(segment["id"]) for segment in listed]
        ids = read_panoptic_map(os.path.join(self.root, annotation["file_name"]), numbers)
        categories = [self.index_of[segment["category_id"]] for segment in listed]
        return Segments.of(ids, numbers, categories, [bool(segment.get("iscrowd", 0)) for segment in listed])


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality: `{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", ..., "PQ_st", ..., "PQ-cat", ...}}` in percent.

    Outputs are Detectron2's: `panoptic_seg`, a map (H, W) of segment ids, 0 where nothing is, and a list of dicts with
    `id`, `category_id` (contiguous) and `isthing`. Only counts are kept and gathered from processes, no maps.

    Args:
        dataset_name: a registered set with `panoptic_json` and `panoptic_root` in its metadata, and the ids of
            contiguous classes in `stuff_dataset_id_to_contiguous_id` (all classes, or those of stuff alone, as in
            Detectron2's own registrations) and `thing_dataset_id_to_contiguous_id`.
        output_dir: where predictions go.
        write_predictions: write them, as a json and PNGs in COCO's panoptic format.
        distributed: gather from all processes.
        settings: how the model makes segments, in words for the protocol.

    Raises:
        ValueError: as :func:`panoptic_truth_of` and :class:`PanopticTruth`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        write_predictions: bool = False,
        distributed: bool = True,
        settings: str = "",
    ) -> None:
        if write_predictions and not output_dir:
            raise ValueError("write_predictions needs an output_dir")
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.output_dir = output_dir if write_predictions else None
        self.distributed = distributed
        self.settings = settings
        self.truth = PanopticTruth(*panoptic_truth_of(dataset_name))
        self._thing_ids = _inverted(metadata.get("thing_dataset_id_to_contiguous_id"))
        self._stuff_ids = _inverted(metadata.get("stuff_dataset_id_to_contiguous_id"))
        self.reset()

    def protocol(self) -> dict[str, str]:
        """What counts."""
        return {
            "PQ": f"a match has an IoU above {MIN_IOU} without void; found segments of which more than "
            f"{MAX_UNJUDGED:.0%} lie in void or in crowd regions of their category do not count; means over the "
            "categories that occur",
            "segments": self.settings,
        }

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = PanopticCounts.zeros(len(self.truth.names))
        self._seen: list[str] = []
        self._written: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in a batch: inputs have `image_id`, outputs `panoptic_seg`.

        Raises:
            ValueError: a map of another size than the truth, one that its list of segments does not fit, or an unknown
                category.
        """
        for record, output in zip(inputs, outputs):
            truth = self.truth.segments(record["image_id"])
            found = self._found(record, output)
            if found.ids.shape != truth.ids.shape:
                raise ValueError(
                    f"the panoptic result of {record.get('file_name')!r} has the size {found.ids.shape} (height, "
                    f"width), its truth {truth.ids.shape}: the picture and its PNG do not fit"
                )
            self._counts = self._counts + count_segments(truth, found, len(self.truth.names))
            self._seen.append(str(record["image_id"]))
            if self.output_dir:
                self._write(self.output_dir, self.truth.annotation(record["image_id"]), found)

    def _found(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Segments:
        pixels, listed = output["panoptic_seg"]
        where = f"the panoptic result of {record.get('file_name')}"
        if listed is None:
            raise ValueError(f"{where} has no list of segments (segments_info), which panoptic quality needs")
        ids = np.asarray(pixels.detach().cpu()).astype(np.int64)
        numbers = [int(segment["id"]) for segment in listed]
        check_segment_ids(ids, numbers, where, "its list of segments")
        return Segments.of(ids, numbers, [self._category(segment, where) for segment in listed])

    def _category(self, segment: Mapping[str, Any], where: str) -> int:
        """The truth's category of a found segment, whose `category_id` is contiguous."""
        ids = self._thing_ids if segment.get("isthing") else self._stuff_ids
        known = ids if ids is not None else dict(enumerate(self.truth.category_ids))
        category = known.get(int(segment["category_id"]))
        if category not in self.truth.index_of:
            kind = "thing" if segment.get("isthing") else "stuff"
            raise ValueError(
                f"{where} has a segment of the {kind} class {segment['category_id']}, which {self.dataset_name!r} does "
                "not have: the model's classes are not those of this data set"
            )
        return self.truth.index_of[category]

    def _write(self, folder: str, annotation: Mapping[str, Any], found: Segments) -> None:
        name = os.path.splitext(annotation["file_name"])[0] + ".png"
        path = os.path.join(folder, PREDICTIONS_FOLDER, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_panoptic_map(path, found.ids)
        listed = [
            {"id": number, "category_id": self.truth.category_ids[category]}
            for number, category in zip(found.numbers.tolist(), found.categories.tolist())
        ]
        self._written.append({"image_id": annotation["image_id"], "file_name": name, "segments_info": listed})

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The metrics; None on all but the main process."""
        counts, seen, written = self._counts, self._seen, self._written
        if self.distributed and comm.get_world_size() > 1:
            parts = comm.gather((counts, seen, written), dst=0)
            if not comm.is_main_process():
                return None
            counts = sum((part for part, _, _ in parts), PanopticCounts.zeros(len(self.truth.names)))
            seen = [key for _, keys, _ in parts for key in keys]
            written = [entry for _, _, entries in parts for entry in entries]
        if self.output_dir:
            write_json(self.output_dir, PREDICTIONS_FILE, {"annotations": written})
        if len(set(seen)) < len(self.truth):
            logger.warning(
                "%d of the %d pictures of %s went through the model; the others do not count",
                *(len(set(seen)), len(self.truth), self.truth.path),
            )
        metrics = panoptic_metrics(counts, self.truth.is_thing, self.truth.names)
        summary = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "-" not in name)
        logger.info("%s panoptic_seg: %s", self.dataset_name, summary)
        return OrderedDict(panoptic_seg=metrics)


def panoptic_truth_of(dataset_name: str) -> tuple[str, str]:
    """`panoptic_json` and `panoptic_root` of a data set's metadata.

    Raises:
        ValueError: one is not set.
        FileNotFoundError: one is not there.
    """
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("panoptic_json", "panoptic_root"):
        path = metadata.get(key)
        if not path:
            raise ValueError(f"data set {dataset_name!r} has no {key} in its metadata, the truth of its PQ")
        if not PathManager.exists(path):
            raise FileNotFoundError(f"there is no {path!r}, the {key} of {dataset_name!r}")
    return metadata.panoptic_json, metadata.panoptic_root


def _inverted(id_map: Mapping[int, int] | None) -> dict[int, int] | None:
    return None if id_map is None else {index: number for number, index in id_map.items()}
