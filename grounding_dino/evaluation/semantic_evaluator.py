"""The evaluator of semantic segmentation: IoU, accuracy and Boundary IoU against maps of classes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.data.segmentation_maps import read_semantic_map
from grounding_dino.evaluation.semantic_iou import boundary_counts, confusion, semantic_metrics

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """`{"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "mBoundaryIoU", "IoU-class", ...}}` in percent.

    Outputs have `sem_seg` (K, H, W), the scores of classes; a pixel's class is the best. Only counts of pixels are kept
    and gathered from processes, no maps. Boundary IoU is measured as published, class by class; Detectron2's own
    evaluator takes differences of class numbers at borders for classes, so that its numbers of that name are others.

    Args:
        dataset_name: a registered set whose records have `sem_seg_file_name`, and whose metadata have `stuff_classes`
            (the K classes) and perhaps `ignore_label`.
        distributed: gather from all processes.
        settings: how results came about, in words for the protocol.

    Raises:
        ValueError: the metadata have no `stuff_classes`, or as :func:`semantic_truth_of`.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, settings: Mapping[str, str] | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        names = metadata.get("stuff_classes")
        if not names:
            raise ValueError(f"data set {dataset_name!r} has no stuff_classes in its metadata, the classes of its maps")
        self.dataset_name = dataset_name
        self.distributed = distributed
        self.settings = dict(settings or {})
        self.names = list(names)
        self.ignore_label = metadata.get("ignore_label")
        self._maps = semantic_truth_of(dataset_name, DatasetCatalog.get(dataset_name))
        self.reset()

    def protocol(self) -> dict[str, str]:
        """What counts."""
        ignored = f", without those of the label {self.ignore_label}" if self.ignore_label is not None else ""
        classes = f"means over those of the {len(self.names)} classes that the truth has"
        return {"mIoU": f"pixels of all pictures together{ignored}; {classes}", **self.settings}

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = np.zeros((len(self.names) + 1, len(self.names)), dtype=np.int64)
        self._boundaries = np.zeros((2, len(self.names)), dtype=np.int64)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in a batch: inputs have `file_name`, outputs `sem_seg`.

        Raises:
            ValueError: scores of another number of classes, a map of another size than the truth, or a label in the
                truth that is no class.
        """
        for record, output in zip(inputs, outputs):
            scores = output["sem_seg"]
            if len(scores) != len(self.names):
                raise ValueError(
                    f"the model gives scores of {len(scores)} classes, but {self.dataset_name!r} has "
                    f"{len(self.names)}: its class head does not fit this data set"
                )
            found = scores.argmax(dim=0).cpu().numpy().astype(np.int64)
            truth = self._truth(record["file_name"])
            if found.shape != truth.shape:
                raise ValueError(
                    f"the semantic result of {record['file_name']!r} has the size {found.shape} (height, width), its "
                    f"truth {self._maps[record['file_name']]!r} {truth.shape}: the picture and its map do not fit"
                )
            self._counts += confusion(truth, found, len(self.names))
            self._boundaries += boundary_counts(truth, found, len(self.names))

    def _truth(self, file_name: str) -> NDArray[np.int64]:
        """The true class of each pixel (H, W), K where it is ignored."""
        path = self._maps[file_name]
        labels = read_semantic_map(path)
        ignored = np.zeros(labels.shape, dtype=bool) if self.ignore_label is None else labels == self.ignore_label
        wrong = labels[~ignored & ((labels < 0) | (labels >= len(self.names)))]
        if wrong.size:
            raise ValueError(
                f"{path!r} has pixels of the class {int(wrong[0])}, but {self.dataset_name!r} has {len(self.names)} "
                f"classes, from 0, and the ignore_label {self.ignore_label}"
            )
        return np.where(ignored, len(self.names), labels)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The metrics; None on all but the main process."""
        counts, boundaries = self._counts, self._boundaries
        if self.distributed and comm.get_world_size() > 1:
            parts = comm.gather((counts, boundaries), dst=0)
            if not comm.is_main_process():
                return None
            counts, boundaries = (np.sum([part[index] for part in parts], axis=0) for index in (0, 1))
        metrics = semantic_metrics(counts, boundaries, self.names)
        summary = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "-" not in name)
        logger.info("%s sem_seg: %s", self.dataset_name, summary)
        return OrderedDict(sem_seg=metrics)


def semantic_truth_of(dataset_name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The maps of classes of a data set's pictures, by the pictures' files.

    Raises:
        ValueError: a record has none.
    """
    for record in records:
        if "sem_seg_file_name" not in record:
            raise ValueError(
                f"{record.get('file_name')!r} of {dataset_name!r} has no sem_seg_file_name, the truth of semantic "
                "evaluation"
            )
    return {record["file_name"]: record["sem_seg_file_name"] for record in records}
