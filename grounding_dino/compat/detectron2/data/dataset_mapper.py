"""From a record of a data set to what a model reads."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import Transform

from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads the picture, augments it, and turns its annotations into `Instances`.

    Adds "image", a (C, H, W) uint8 tensor in `image_format`; in training "instances" (`gt_boxes`, `gt_classes`,
    `gt_masks`) in place of "annotations"; and "sem_seg", (H, W) int64, where the record has "sem_seg_file_name".
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        """
        Args:
            is_train: keep annotations and augment at random.
            augmentations: what to apply, in order.
            image_format: "RGB", "BGR" or another format of `read_image`.
            use_instance_mask: keep segmentations.
            instance_mask_format: "polygon" or "bitmask".
            recompute_boxes: take boxes from the masks after cropping, which fits tighter.

        Raises:
            NotImplementedError: keypoints or precomputed proposals are asked for.
        """
        if use_keypoint or keypoint_hflip_indices is not None:
            raise NotImplementedError("Keypoints need an installed upstream Detectron2.")
        if precomputed_proposal_topk is not None:
            raise NotImplementedError("Precomputed proposals need an installed upstream Detectron2.")
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes takes boxes from masks, so it needs use_instance_mask.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.recompute_boxes = recompute_boxes
        logger.info(
            "[DatasetMapper] augmentations in %s: %s", "training" if is_train else "inference", self.augmentations
        )

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """The arguments that a config asks for."""
        augmentations = utils.build_augmentation(cfg, is_train)
        cropped = cfg.INPUT.CROP.ENABLED and is_train
        if cropped:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": cfg.MODEL.MASK_ON if cropped else False,
        }
        if cfg.MODEL.LOAD_PROPOSALS:
            arguments["precomputed_proposal_topk"] = (
                cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
                if is_train
                else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            )
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record; the record itself is left as it is."""
        record = copy.deepcopy(dataset_dict)
        image = utils.read_image(record["file_name"], format=self.image_format)
        utils.check_image_size(record, image)
        sem_seg = utils.read_image(record.pop("sem_seg_file_name"), "L") if "sem_seg_file_name" in record else None
        aug_input = T.AugInput(image, sem_seg=None if sem_seg is None else sem_seg[:, :, 0])
        transforms = self.augmentations(aug_input)
        # Copied, since flips give negative strides, which a tensor cannot share.
        record["image"] = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if not self.is_train:
            record.pop("annotations", None)
            return record
        if "annotations" in record:
            self._transform_annotations(record, transforms, aug_input.image.shape[:2])
        return record

    def _transform_annotations(
        self, record: dict[str, Any], transforms: Transform, image_shape: tuple[int, int]
    ) -> None:
        annotations = []
        for annotation in record.pop("annotations"):
            annotation.pop("keypoints", None)
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            if annotation.get("iscrowd", 0) == 0:
                annotations.append(utils.transform_instance_annotations(annotation, transforms, image_shape))
        instances = utils.annotations_to_instances(annotations, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        record["instances"] = utils.filter_empty_instances(instances)
