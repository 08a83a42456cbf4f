"""Reading pictures, and turning annotation dicts into `Instances`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from fvcore.transforms.transform import Transform, TransformList
from PIL import Image, ImageOps

from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T

logger = logging.getLogger(__name__)

YUV_FORMAT = "YUV-BT.601"
_RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


class SizeMismatchError(ValueError):
    """A picture has another size than its record says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """A PIL picture as (H, W, C) in `format`: a PIL mode, "BGR", or "YUV-BT.601" (float); None keeps its mode.

    One channel ("L") gives (H, W, 1).
    """
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", YUV_FORMAT) else format)
    array = np.asarray(image)
    if format == "L":
        return np.expand_dims(array, -1)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == YUV_FORMAT:
        return np.dot(array / 255.0, _RGB_TO_YUV.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The inverse of `convert_PIL_to_numpy`: (H, W, C) in `format` to (H, W, 3) uint8 RGB."""
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return array[:, :, [2, 1, 0]]
    if format == YUV_FORMAT:
        return (np.dot(array, _YUV_TO_RGB.T).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    pixels = array[:, :, 0] if format == "L" and array.ndim == 3 else array
    picture = Image.fromarray(pixels.astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read a picture, turned as its EXIF orientation says, as (H, W, C) in `format` (see `convert_PIL_to_numpy`)."""
    with PathManager.open(file_name, "rb") as file:
        image: Image.Image = Image.open(file)
        return convert_PIL_to_numpy(ImageOps.exif_transpose(image), format)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Hold a picture against the size in its record; fill the size in where the record has none.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        expected = (dataset_dict["width"], dataset_dict["height"])
        if (width, height) != expected:
            name = dataset_dict.get("file_name", "the picture")
            raise SizeMismatchError(
                f"{name} is {width} x {height} pixels, but its annotation record says {expected[0]} x {expected[1]}: "
                "correct the record (or the picture's EXIF orientation)."
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Not available: precomputed proposals belong to models that this implementation does not have."""
    raise NotImplementedError("Precomputed proposals need an installed upstream Detectron2.")


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Transform | Sequence[Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Apply transforms to the box and the segmentation of one annotation, which is changed and returned.

    Args:
        annotation: "bbox" with "bbox_mode", and optionally "segmentation": polygons or RLE.
        transforms: what was applied to the picture.
        image_size: (h, w) after the transforms; boxes are clipped to it and become XYXY_ABS.

    Raises:
        NotImplementedError: it has keypoints.
        ValueError: its segmentation is of an unknown kind or size.
    """
    if "keypoints" in annotation or keypoint_hflip_indices is not None:
        raise NotImplementedError("Keypoints need an installed upstream Detectron2.")
    tfms = transforms if isinstance(transforms, Transform) else TransformList(list(transforms))
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = tfms.apply_box(np.array([box], dtype=np.float64))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [image_size[1], image_size[0], image_size[1], image_size[0]])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], tfms, image_size)
    return annotation


def _transform_segmentation(segmentation: Any, tfms: Transform, image_size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in tfms.apply_polygons([p.copy() for p in polygons])]
    if isinstance(segmentation, dict):
        mask = tfms.apply_segmentation(mask_util.decode(segmentation))
        if tuple(mask.shape[:2]) != tuple(image_size):
            raise ValueError(
                f"a mask of {segmentation['size']} becomes {mask.shape[:2]} where the picture becomes {image_size}: "
                "its size is not that of its picture."
            )
        return mask
    raise ValueError(
        f"a segmentation is a list of polygons or an RLE dict, but this one is a {type(segmentation).__name__}."
    )


def _masks_to_bitmask(segmentations: list[Any], image_size: tuple[int, int]) -> BitMasks:
    masks = []
    for segmentation in segmentations:
        if isinstance(segmentation, list):
            masks.append(polygons_to_bitmask(segmentation, *image_size))
        elif isinstance(segmentation, dict):
            masks.append(mask_util.decode(segmentation))
        elif isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
            masks.append(segmentation)
        else:
            raise ValueError(
                f"cannot make a mask of a {type(segmentation).__name__}: give polygons, an RLE dict or an (H, W) array."
            )
    return BitMasks(torch.stack([torch.from_numpy(np.array(mask, order="C")) for mask in masks]))


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Ground truth for a model: `gt_boxes`, `gt_classes` (int64) and, where annotated, `gt_masks`.

    Args:
        annos: annotations of one picture, as `transform_instance_annotations` returns them.
        image_size: (h, w) of the picture.
        mask_format: "polygon" for `PolygonMasks`, "bitmask" for `BitMasks`.

    Raises:
        ValueError: the format is unknown, or "polygon" is asked for and a segmentation is a mask.
    """
    boxes = [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)))
    target.gt_classes = torch.tensor([int(obj["category_id"]) for obj in annos], dtype=torch.int64)
    if len(annos) and "segmentation" in annos[0]:
        segmentations = [obj["segmentation"] for obj in annos]
        if mask_format == "bitmask":
            target.gt_masks = _masks_to_bitmask(segmentations, image_size)
        elif mask_format == "polygon":
            if not all(isinstance(segmentation, list) for segmentation in segmentations):
                raise ValueError(
                    "INPUT.MASK_FORMAT is 'polygon', but the data set has masks (RLE): set it to 'bitmask'."
                )
            target.gt_masks = PolygonMasks(segmentations)
        else:
            raise ValueError(f"unknown mask format {mask_format!r}; choose 'polygon' or 'bitmask'.")
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Drop instances whose box has no area (at most `box_threshold` wide or high) or whose mask is empty.

    Returns:
        the instances left, and with `return_mask` also the (N,) bool tensor of those kept.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances needs by_box or by_mask, or it has nothing to go by.")
    kept = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty()
    return (instances[kept], kept) if return_mask else instances[kept]


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation | Transform]:
    """The default policy of a config: resize the shorter edge; in training also flip, as INPUT.RANDOM_FLIP says."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation | Transform] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


build_transform_gens = build_augmentation
