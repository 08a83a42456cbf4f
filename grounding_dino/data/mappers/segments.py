"""Pictures with panoptic or semantic maps: one instance a segment, or a class present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from grounding_dino.data.augmentation import build_semantic_augmentations
from grounding_dino.data.datasets.segmentation_classes import IGNORE_LABEL
from grounding_dino.data.mappers.build import MAPPER_REGISTRY
from grounding_dino.data.mappers.closed_set import closed_set_arguments
from grounding_dino.data.mappers.ground_truth import segment_instances
from grounding_dino.data.mappers.reading import PictureReader, image_tensor, resizable, transformed
from grounding_dino.data.segmentation_maps import check_segment_ids, read_panoptic_map, read_semantic_map

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

Record = dict[str, Any]


class _SegmentMapper:
    """What mappers of maps share: picture and map go through the same transforms, and a segment is an instance."""

    def __init__(self, is_train: bool, augmentations: Sequence[T.Augmentation], image_format: str) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.reader = PictureReader(image_format, is_train)

    def __call__(self, record: Record) -> Record | None:
        sample, image = self.reader.read(record)
        if image is None:
            return None
        labels = self._labels(record, image) if self.is_train else None
        if self.is_train and labels is None:
            return None
        pixels, _ = transformed(image, self.augmentations, labels)
        sample["image"] = image_tensor(pixels.image)
        if pixels.sem_seg is not None:
            numbers, classes = self._segments(record, pixels.sem_seg)
            masks = [np.asarray(pixels.sem_seg == number) for number in numbers]
            sample["instances"] = segment_instances(masks, classes, pixels.image.shape[:2])
        return sample

    def _labels(self, record: Record, image: np.ndarray) -> np.ndarray | None:
        """(H, W) numbers of segments, in a type that can be resized; None where the map cannot be read."""
        raise NotImplementedError

    def _segments(self, record: Record, labels: np.ndarray) -> tuple[list[int], list[int]]:
        """The numbers in the transformed map (H, W) that become instances, and the class of each."""
        raise NotImplementedError


@MAPPER_REGISTRY.register()
class PanopticMapper(_SegmentMapper):
    """A record with a panoptic map to a model input: `image` (C, H, W) uint8 and, in training, `instances`.

    Each segment is one of the instances: `gt_masks` (`BitMasks`), `gt_boxes` around them, and `gt_classes`, the
    contiguous classes of things and stuff together. Crowds, and segments that a crop leaves no pixel of, are left out.
    In testing `segments_info` and the paths of maps are handed on for evaluators.

    Call it with a record; it is not changed. None means: the picture or its map cannot be read, take another. An error
    (ValueError) says that a map does not fit its picture, or its ids are not those of `segments_info`.

    Args:
        is_train: keep the ground truth.
        augmentations: of pictures and maps.
        image_format: "RGB" or "BGR".
    """

    @configurable
    def __init__(self, *, is_train: bool, augmentations: Sequence[T.Augmentation], image_format: str = "RGB") -> None:
        super().__init__(is_train, augmentations, image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read INPUT; raises as :func:`closed_set_arguments`."""
        return closed_set_arguments(cfg, is_train)

    def _labels(self, record: Record, image: np.ndarray) -> np.ndarray | None:
        """(H, W): which of `segments_info` a pixel belongs to, counted from 1; 0 is none."""
        path, segments = record["pan_seg_file_name"], record["segments_info"]
        ids = self.reader.read_labels(path, read_panoptic_map, image)
        if ids is None:
            return None
        check_segment_ids(ids, [segment["id"] for segment in segments], path)
        numbers = np.zeros(ids.shape, dtype=np.int64)
        for number, segment in enumerate(segments, 1):
            numbers[ids == segment["id"]] = number
        return resizable(numbers, len(segments))

    def _segments(self, record: Record, labels: np.ndarray) -> tuple[list[int], list[int]]:
        segments = [(n, s["category_id"]) for n, s in enumerate(record["segments_info"], 1) if not s.get("iscrowd", 0)]
        return [number for number, _ in segments], [category for _, category in segments]


class LabelRange(NamedTuple):
    """What the pixels of a data set's semantic maps may be."""

    num_classes: int | None  # unknown: any
    ignore_label: int

    @classmethod
    def of(cls, dataset_name: str) -> LabelRange:
        """As the data set's metadata say."""
        metadata = MetadataCatalog.get(dataset_name)
        names = metadata.get("stuff_classes", None)
        return cls(None if names is None else len(names), metadata.get("ignore_label", IGNORE_LABEL))


@MAPPER_REGISTRY.register()
class SemanticMapper(_SegmentMapper):
    """A record with a semantic map to a model input: `image` (C, H, W) uint8 and, in training, `instances`.

    Each class that is present is one of the instances: `gt_masks` (`BitMasks`) of its pixels, `gt_boxes` around them
    and `gt_classes`. Pixels of the ignored label belong to none. In testing the path of the map is handed on.

    Call it with a record; it is not changed. None means: the picture or its map cannot be read, take another. An error
    (ValueError) says that a map does not fit its picture, or has a class that the data set does not have.

    Args:
        is_train: keep the ground truth.
        augmentations: of pictures and maps.
        image_format: "RGB" or "BGR".
        labels: data set name -> what its maps hold; others are looked up in the metadata when needed.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        labels: Mapping[str, LabelRange] | None = None,
    ) -> None:
        super().__init__(is_train, augmentations, image_format)
        self.labels = dict(labels or {})

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read INPUT, and take over what the maps of the data sets hold.

        Raises:
            ValueError: a key of INPUT is out of range, or training sets ignore different labels.
        """
        arguments = {"is_train": is_train, "image_format": cfg.INPUT.FORMAT}
        if not is_train:
            return {**arguments, "augmentations": utils.build_augmentation(cfg, False)}
        labels = {name: LabelRange.of(name) for name in cfg.DATASETS.TRAIN}
        ignored = sorted({found.ignore_label for found in labels.values()}) or [IGNORE_LABEL]
        if len(ignored) > 1:
            raise ValueError(f"the sets of DATASETS.TRAIN ignore different labels ({ignored}); train on them apart")
        return {**arguments, "augmentations": build_semantic_augmentations(cfg, ignored[0]), "labels": labels}

    def _labels(self, record: Record, image: np.ndarray) -> np.ndarray | None:
        path = record["sem_seg_file_name"]
        labels = self.reader.read_labels(path, read_semantic_map, image)
        if labels is None:
            return None
        allowed = self._range_of(record)
        largest = int(np.max(labels, where=labels != allowed.ignore_label, initial=-1))
        if allowed.num_classes is not None and largest >= allowed.num_classes:
            raise ValueError(
                f"{path} has the class {largest}, but the data set {record.get('dataset_name')!r} has the classes 0 to "
                f"{allowed.num_classes - 1}, and {allowed.ignore_label} for pixels without one; prepare its maps again"
            )
        return resizable(labels, max(largest, allowed.ignore_label))

    def _segments(self, record: Record, labels: np.ndarray) -> tuple[list[int], list[int]]:
        ignored = self._range_of(record).ignore_label
        classes = [int(label) for label in np.unique(labels) if label != ignored]
        return classes, classes

    def _range_of(self, record: Record) -> LabelRange:
        name = record.get("dataset_name")
        if name is None:
            return next(iter(self.labels.values())) if len(self.labels) == 1 else LabelRange(None, IGNORE_LABEL)
        if name not in self.labels:
            self.labels[name] = LabelRange.of(name)
        return self.labels[name]
