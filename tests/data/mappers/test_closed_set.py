import copy
import json

from grounding_dino.data.build import load_records
from grounding_dino.data.datasets import register_coco
from grounding_dino.data.loader import build_train_loader
from grounding_dino.data.mappers import InstanceMapper, build_mapper

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

HEIGHT, WIDTH = 40, 60


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def _picture(path, height=HEIGHT, width=WIDTH):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = 255  # red on the left
    Image.fromarray(pixels).save(path)
    return str(path)


def _rle(*pixels, height=HEIGHT, width=WIDTH):
    """An uncompressed RLE of single pixels (y, x)."""
    places = sorted(x * height + y for y, x in pixels)
    runs, end = [], 0
    for place in places:
        runs += [place - end, 1]
        end = place + 1
    return {"size": [height, width], "counts": [*runs, height * width - end]}


def _annotation(category, box, **extra):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": 0, **extra}


RECTANGLE = [[0, 0, 30, 0, 30, 20, 0, 20]]


@pytest.fixture
def record(tmp_path):
    annotations = [
        _annotation(2, [0, 0, 30, 20], segmentation=RECTANGLE),
        _annotation(0, [40, 10, 10, 20], segmentation=[[40, 10, 50, 10, 50, 30, 40, 30]]),
    ]
    name = _picture(tmp_path / "a.png")
    return {"file_name": name, "image_id": 5, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def _mapper(*augmentations, is_train=True, masks_on=True):
    return InstanceMapper(is_train=is_train, augmentations=augmentations, masks_on=masks_on)


class Crop(T.Augmentation):
    def __init__(self, x0, y0, width, height):
        self.window = (x0, y0, width, height)

    def get_transform(self, image):
        return T.CropTransform(*self.window, image.shape[1], image.shape[0])


def test_classes_of_the_data_set_with_boxes_and_masks(record):
    before = copy.deepcopy(record)
    sample = _mapper(T.RandomFlip(prob=1.0), T.Resize((80, 120)))(record)
    assert record == before
    instances = sample["instances"]
    assert sorted(sample) == ["file_name", "height", "image", "image_id", "instances", "width"]
    assert sorted(instances.get_fields()) == ["gt_boxes", "gt_classes", "gt_masks"]
    assert instances.gt_classes.tolist() == [2, 0] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.tolist() == [[60, 0, 120, 40], [20, 20, 40, 60]]
    assert isinstance(instances.gt_masks, BitMasks) and instances.gt_masks.tensor.shape == (2, 80, 120)
    torch.testing.assert_close(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor)
    assert sample["image"].shape == (3, 80, 120) and sample["image"][0, 0, -1] == 255


def test_without_masks_there_are_boxes_alone(record):
    del record["annotations"][0]["segmentation"]
    assert sorted(_mapper(masks_on=False)(record)["instances"].get_fields()) == ["gt_boxes", "gt_classes"]
    assert len(_mapper(masks_on=False)(record)["instances"]) == 2
    assert _mapper()(record)["instances"].gt_classes.tolist() == [0]  # the other has no mask


def test_after_a_crop_boxes_are_those_of_what_is_left_of_the_masks(record):
    triangle = [[0, 0, 40, 0, 0, 40]]
    record["annotations"] = [_annotation(1, [0, 0, 40, 40], segmentation=triangle)]
    instances = _mapper(Crop(20, 10, 30, 20))(record)["instances"]
    x0, y0, x1, y1 = instances.gt_boxes.tensor[0].tolist()
    assert (x0, y0) == (0, 0) and 9 <= x1 <= 11 and 9 <= y1 <= 11  # the triangle's corner, not its box


@pytest.mark.parametrize("segmentation", [_rle(), [[3, 3, 3, 3, 3, 3]], []])
def test_an_empty_mask_leaves_its_object_out(record, segmentation):
    record["annotations"][0]["segmentation"] = segmentation
    assert _mapper()(record)["instances"].gt_classes.tolist() == [0]


def test_one_pixel_is_an_object_with_a_box_of_one_pixel(record):
    record["annotations"] = [_annotation(1, [7, 9, 1, 1], segmentation=_rle((9, 7)))]
    instances = _mapper(Crop(5, 5, 20, 20))(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[2, 4, 3, 5]] and int(instances.gt_masks.tensor.sum()) == 1


@pytest.mark.parametrize("annotations", [[], [_annotation(1, [0, 0, 9, 9], iscrowd=1, segmentation=RECTANGLE)]])
def test_a_picture_without_objects_has_no_instances_but_their_fields(record, annotations):
    instances = _mapper(T.Resize((20, 30)))({**record, "annotations": annotations})["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_masks.tensor.shape == (0, 20, 30)


def test_a_mask_that_does_not_fit_is_an_error_that_names_file_and_annotation(record):
    record["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [100, 50]}
    with pytest.raises(ValueError, match=r"annotation 1 of .*a.png: the runs of an RLE fill 150 pixels of 2400"):
        _mapper()(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_an_unreadable_picture_is_replaced(record, caplog, is_train):
    with open(record["file_name"], "wb") as file:
        file.write(b"broken")
    mapper = _mapper(is_train=is_train)
    sample = mapper(record)
    assert mapper.reader.num_unreadable == 1 and "a.png" in caplog.text
    if is_train:
        assert sample is None
    else:
        assert sample["image"].shape == (3, HEIGHT, WIDTH) and not sample["image"].any()


def test_testing_hands_on_the_picture_without_ground_truth(record):
    sample = _mapper(T.Resize((20, 30)), is_train=False)(record)
    assert sorted(sample) == ["file_name", "height", "image", "image_id", "width"]
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH) and sample["image"].shape == (3, 20, 30)


@pytest.mark.parametrize("horizontal", [True, False])
def test_pictures_of_one_pixel_are_mirrored(tmp_path, horizontal):
    annotation = _annotation(0, [0, 0, 1, 1], segmentation=_rle((0, 0), height=1, width=1))
    name = _picture(tmp_path / "one.png", 1, 1)
    record = {"file_name": name, "image_id": 1, "height": 1, "width": 1, "annotations": [annotation]}
    mirror = T.RandomFlip(prob=1.0, horizontal=horizontal, vertical=not horizontal)
    assert _mapper(mirror)(record)["instances"].gt_masks.tensor.tolist() == [[[True]]]


@pytest.mark.parametrize("side", [(1, 1), (1, 31), (31, 1), (20, 7)])
@pytest.mark.parametrize("jitter", [True, False])
def test_small_pictures_are_samples(tmp_path, tiny_cfg, side, jitter):
    height, width = side
    outline = [[0, 0, width, 0, width, height, 0, height]]
    annotations = [_annotation(0, [0, 0, width, height], segmentation=outline)]
    name = _picture(tmp_path / "small.png", height, width)
    record = {"file_name": name, "image_id": 1, "height": height, "width": width, "annotations": annotations}
    options = ["INPUT.MAPPER", "InstanceMapper", "MODEL.MASK_ON", True, "INPUT.CROP.ENABLED", not jitter]
    options += ["INPUT.LARGE_SCALE_JITTER.ENABLED_ON", jitter, "INPUT.LARGE_SCALE_JITTER.SIZE", 64]
    tiny_cfg.merge_from_list(options)
    mapper = build_mapper(tiny_cfg, is_train=True)
    for _ in range(10):
        sample = mapper(record)
        assert sample["image"].shape[1:] == sample["instances"].gt_masks.tensor.shape[1:]
        assert min(sample["image"].shape) > 0


def test_a_data_set_with_a_category_of_crowds_alone_trains(tmp_path, tiny_cfg):
    _picture(tmp_path / "a.png")
    _picture(tmp_path / "b.png")
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 100, 2300]}
    ones = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 30, 20], "iscrowd": 0, "segmentation": RECTANGLE},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 3, 40], "iscrowd": 1, "segmentation": crowd},
        {"id": 3, "image_id": 2, "category_id": 9, "bbox": [0, 0, 3, 40], "iscrowd": 1, "segmentation": crowd},
    ]
    images = [
        {"id": n, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH} for n, name in ((1, "a"), (2, "b"))
    ]
    content = {
        "images": images,
        "annotations": ones,
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    register_coco("crowds", str(tmp_path / "set.json"), str(tmp_path))
    try:
        assert len(load_records(["crowds"], filter_empty=True)) == 1
        options = ["DATASETS.TRAIN", ("crowds",), "INPUT.MAPPER", "InstanceMapper", "MODEL.MASK_ON", True]
        tiny_cfg.merge_from_list([*options, "SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_WORKERS", 0])
        (sample,) = next(iter(build_train_loader(tiny_cfg, seed=0)))
        assert sample["instances"].gt_classes.tolist() == [0] and len(sample["instances"].gt_masks) == 1
    finally:
        DatasetCatalog.remove("crowds")
        MetadataCatalog.pop("crowds", None)
