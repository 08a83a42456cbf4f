"""Pictures with boxes and masks for models with a fixed list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.data.augmentation import build_training_augmentations
from grounding_dino.data.mappers.build import MAPPER_REGISTRY
from grounding_dino.data.mappers.ground_truth import annotated_instances
from grounding_dino.data.mappers.reading import PictureReader, image_tensor, transformed

from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

Record = dict[str, Any]


def closed_set_arguments(cfg: CfgNode, is_train: bool) -> dict[str, Any]:
    """The arguments that the mappers for boxes and for panoptic segments share, from INPUT.

    Raises:
        ValueError: one of the keys of INPUT is out of range.
    """
    augmentations = build_training_augmentations(cfg).class_names if is_train else utils.build_augmentation(cfg, False)
    return {"is_train": is_train, "augmentations": augmentations, "image_format": cfg.INPUT.FORMAT}


@MAPPER_REGISTRY.register()
class InstanceMapper:
    """A record to a model input: `image` (C, H, W) uint8 and, in training, `instances`.

    `gt_classes` are the classes of the data set; with masks `gt_masks` are `BitMasks` of the size of `image`. What is
    left out see :func:`annotated_instances`, and what happens with unreadable pictures :class:`PictureReader`.

    Call it with a record; it is not changed. None means: the picture cannot be used for training, take another.

    Args:
        is_train: keep the ground truth.
        augmentations: of the pictures.
        image_format: "RGB" or "BGR".
        masks_on: `gt_masks` too; objects without a segmentation are left out then.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        masks_on: bool = False,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.reader = PictureReader(image_format, is_train)
        self.masks_on = masks_on

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read INPUT and MODEL.MASK_ON; raises as :func:`closed_set_arguments`."""
        return {**closed_set_arguments(cfg, is_train), "masks_on": cfg.MODEL.MASK_ON}

    def __call__(self, record: Record) -> Record | None:
        sample, image = self.reader.read(record)
        if image is None:
            return None
        pixels, transforms = transformed(image, self.augmentations)
        sample["image"] = image_tensor(pixels.image)
        if self.is_train:
            size = pixels.image.shape[:2]
            sample["instances"] = annotated_instances({**record, **sample}, transforms, size, self.masks_on)
            sample["instances"].remove("places")
        return sample
