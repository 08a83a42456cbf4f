"""Reading pictures, transforming annotations, and the mapper."""

from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

RLE_MASK = np.zeros((40, 60), dtype=np.uint8)
RLE_MASK[10:20, 20:40] = 1


# --- pictures and annotations


def test_read_image_formats_and_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    path = str(tmp_path / "turned.png")
    rgb, bgr = detection_utils.read_image(path, "RGB"), detection_utils.read_image(path, "BGR")
    assert rgb.shape == (6, 4, 3)
    assert rgb[0, 0].tolist() == [200, 0, 0] and bgr[0, 0].tolist() == [0, 0, 200]
    assert detection_utils.read_image(path, "L").shape == (6, 4, 1)
    for kind in ("RGB", "BGR", "YUV-BT.601"):
        image = detection_utils.read_image(path, kind)
        np.testing.assert_allclose(detection_utils.convert_image_to_rgb(image, kind), rgb, atol=2)


def test_check_image_size() -> None:
    record = {"file_name": "x.png", "width": 6, "height": 5}
    with pytest.raises(ValueError, match="x.png"):
        detection_utils.check_image_size(record, np.zeros((4, 6, 3)))
    filled: dict[str, Any] = {}
    detection_utils.check_image_size(filled, np.zeros((4, 6, 3)))
    assert filled == {"width": 6, "height": 4}


def test_annotations_follow_the_transforms() -> None:
    transforms = T.TransformList([T.HFlipTransform(60), T.ResizeTransform(40, 60, 80, 120)])
    annotation = {
        "bbox": [10.0, 10.0, 60.0, 15.0],  # reaches out of the picture
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [[10.0, 10.0, 30.0, 10.0, 30.0, 25.0]],
        "category_id": 1,
    }
    result = detection_utils.transform_instance_annotations(annotation, transforms, (80, 120))
    np.testing.assert_allclose(result["bbox"], [0, 20, 100, 50])
    assert result["bbox_mode"] == BoxMode.XYXY_ABS
    np.testing.assert_allclose(result["segmentation"][0], [100, 20, 60, 20, 60, 50])
    rle = {
        "bbox": [0, 0, 1, 1],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": mask_util.encode(np.asfortranarray(RLE_MASK)),
    }
    mask = detection_utils.transform_instance_annotations(rle, [T.HFlipTransform(60)], (40, 60))["segmentation"]
    np.testing.assert_array_equal(mask, RLE_MASK[:, ::-1])


def test_annotations_to_instances() -> None:
    polygons = {
        "bbox": [1, 2, 3, 4],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 5,
        "segmentation": [[0.0, 0, 4, 0, 4, 4]],
    }
    instances = detection_utils.annotations_to_instances([polygons], (40, 60))
    assert isinstance(instances.gt_masks, PolygonMasks) and instances.gt_classes.tolist() == [5]
    bitmask = detection_utils.annotations_to_instances([polygons], (40, 60), "bitmask")
    assert isinstance(bitmask.gt_masks, BitMasks) and bitmask.gt_masks.tensor.shape == (1, 40, 60)
    empty = detection_utils.annotations_to_instances([], (40, 60))
    assert empty.gt_boxes.tensor.shape == (0, 4) and empty.gt_classes.dtype == torch.int64
    with pytest.raises(ValueError, match="bitmask"):
        masks = {**polygons, "segmentation": RLE_MASK}
        detection_utils.annotations_to_instances([masks], (40, 60), "polygon")


def test_filter_empty_instances() -> None:
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i}
        for i, box in enumerate([[0, 0, 5, 5], [3, 3, 3, 9], [1, 1, 2, 2]])
    ]
    instances = detection_utils.annotations_to_instances(annotations, (10, 10))
    kept, mask = detection_utils.filter_empty_instances(instances, return_mask=True)
    assert kept.gt_classes.tolist() == [0, 2] and mask.tolist() == [True, False, True]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_mapper_in_training(registered: str, small_cfg: Any, mask_format: str) -> None:
    cfg = small_cfg
    cfg.INPUT.MASK_FORMAT, cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = mask_format, "RGB", "none"
    cfg.MODEL.MASK_ON = True
    record = DatasetCatalog.get(registered)[0]
    mapped = DatasetMapper(cfg, True)(record)
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].shape == (3, 20, 30)
    assert (mapped["height"], mapped["width"]) == (40, 60) and "annotations" not in mapped
    np.testing.assert_allclose(mapped["instances"].gt_boxes.tensor, [[5, 5, 15, 12.5]])
    assert mapped["instances"].image_size == (20, 30)
    assert record["annotations"][0]["bbox"] == [10, 10, 20, 15]  # the record itself is left alone


def test_mapper_leaves_crowds_out_and_crops(registered: str, small_cfg: Any) -> None:
    cfg = small_cfg
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.MASK_ON = cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [36, 50]
    mapper = DatasetMapper(cfg, True)
    assert isinstance(mapper.augmentations.augs[0], T.RandomCrop) and mapper.recompute_boxes
    instances = mapper(DatasetCatalog.get(registered)[2])["instances"]
    assert len(instances) == 1
    np.testing.assert_allclose(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)


def test_mapper_in_inference(registered: str, small_cfg: Any) -> None:
    mapped = DatasetMapper(small_cfg, False)(DatasetCatalog.get(registered)[0])
    assert set(mapped) == {"file_name", "height", "width", "image_id", "image"}


def test_mapper_reads_semantic_labels(coco_folder: Path, small_cfg: Any) -> None:
    labels = np.full((40, 60), 3, dtype=np.uint8)
    Image.fromarray(labels).save(coco_folder / "labels.png")
    record = {"file_name": str(coco_folder / "1.png"), "sem_seg_file_name": str(coco_folder / "labels.png")}
    mapped = DatasetMapper(small_cfg, True)(record)
    assert mapped["sem_seg"].dtype == torch.int64 and mapped["sem_seg"].shape == (20, 30)
    assert mapped["sem_seg"].unique().tolist() == [3]


def test_what_is_not_there_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Keypoints"):
        DatasetMapper(True, augmentations=[], image_format="RGB", use_keypoint=True)
    with pytest.raises(NotImplementedError, match="roposals"):
        get_detection_dataset_dicts("coco_2017_val", proposal_files=["x.pkl"])
