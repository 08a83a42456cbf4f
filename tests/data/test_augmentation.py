"""What a configuration does to training pictures, seen through the mapper that it builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.data.augmentation import (
    Saturation,
    SsdColours,
    build_semantic_augmentations,
    build_training_augmentations,
)
from grounding_dino.data.mappers import build_mapper

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

Record = dict[str, Any]
HEIGHT, WIDTH = 40, 60
BOX = (20, 6, 44, 26)  # XYXY of the red rectangle
JITTER = "INPUT.LARGE_SCALE_JITTER."
COLOR = "INPUT.COLOR_JITTER."


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A red rectangle on black."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (255, 0, 0)
    path = tmp_path / "red.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def segmentation(kind: str) -> Any:
    x0, y0, x1, y1 = BOX
    if kind == "polygon":
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return coco_mask.encode(mask)


def record_of(picture: str, kind: str = "polygon", **change: Any) -> Record:
    annotation = {"bbox": list(BOX), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    annotations = [{**annotation, "segmentation": segmentation(kind)}]
    return {"file_name": picture, "image_id": 1, "height": HEIGHT, "width": WIDTH, "annotations": annotations, **change}


@pytest.fixture
def mapper(tiny_cfg: CfgNode) -> Callable[..., Any]:
    """`mapper(*opts)`: a training mapper for the data set `reds`."""
    MetadataCatalog.get("reds").thing_classes = ["red box"]

    def build(*opts: Any) -> Any:
        tiny_cfg.merge_from_list(["DATASETS.TRAIN", ("reds",), "INPUT.MIN_SIZE_TRAIN", (HEIGHT,), *opts])
        return build_mapper(tiny_cfg, is_train=True)

    yield build
    MetadataCatalog.pop("reds", None)


def found_box(red: np.ndarray) -> list[int]:
    """XYXY of the pixels that are set."""
    y, x = np.nonzero(red)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize("kind", ["polygon", "rle"])
@pytest.mark.parametrize("scales", [(0.3, 0.7), (1.0, 1.0), (1.5, 2.5)])
def test_boxes_and_masks_stay_on_their_object_under_large_scale_jitter(
    picture: str, mapper: Callable[..., Any], scales: tuple[float, float], kind: str, flip: str
) -> None:
    made = mapper(
        *(JITTER + "ENABLED_ON", True, JITTER + "SIZE", 96, JITTER + "MIN_SCALE", scales[0]),
        *(JITTER + "MAX_SCALE", scales[1], "MODEL.MASK_ON", True),
        *("INPUT.RANDOM_FLIP", flip),
    )
    places = set()
    for _ in range(8):
        sample = made(record_of(picture, kind))
        image = sample["image"].numpy()
        assert image.shape == (3, 96, 96)
        red = (image[0] > 128) & (image[1] < 64)  # the padding is grey
        instances = sample["instances"]
        if len(instances) == 0:
            assert red.sum() < 50
            continue
        assert instances.gt_boxes.tensor[0].numpy() == pytest.approx(found_box(red), abs=1.5)
        mask = instances.gt_masks.tensor[0].numpy()
        x0, y0, x1, y1 = found_box(red)
        assert (mask != red).sum() <= 2 * (x1 - x0 + y1 - y0)  # a pixel all around
        places.add((x0, y0, x1, y1))
    assert len(places) > 1 or (scales == (1.0, 1.0) and flip == "none")


def test_the_padding_of_large_scale_jitter_is_right_and_below_and_keeps_its_colour(
    picture: str, mapper: Callable[..., Any]
) -> None:
    made = mapper(
        *(JITTER + "ENABLED_ON", True, JITTER + "SIZE", 64, JITTER + "MIN_SCALE", 0.5, JITTER + "MAX_SCALE", 0.5),
        *("INPUT.RANDOM_FLIP", "horizontal", COLOR + "PROBABILITY", 1.0, COLOR + "STRENGTH", 0.4),
    )
    images = [made(record_of(picture))["image"].numpy() for _ in range(6)]
    assert all((image[:, :, 33:] == 128).all() and (image[:, 22:] == 128).all() for image in images)
    assert all((image[:, :21, :32] != 128).any() for image in images)


def test_large_scale_jitter_without_masks_cuts_boxes_at_the_window(picture: str, mapper: Callable[..., Any]) -> None:
    made = mapper(
        JITTER + "ENABLED_ON", True, JITTER + "SIZE", 64, JITTER + "MIN_SCALE", 3.0, JITTER + "MAX_SCALE", 3.0
    )
    boxes = [made(record_of(picture))["instances"].gt_boxes.tensor for _ in range(5)]
    assert all(((0 <= box) & (box <= 64)).all() for box in boxes)
    assert any((box[:, 2:] - box[:, :2]).max() < 75 for box in boxes)  # 24 pixels times 64 / 60 times 3


def test_pictures_with_words_of_their_own_are_scaled_but_not_cut(picture: str, mapper: Callable[..., Any]) -> None:
    made = mapper(
        JITTER + "ENABLED_ON", True, JITTER + "SIZE", 120, JITTER + "MIN_SCALE", 0.5, JITTER + "MAX_SCALE", 3.0
    )
    whole = (BOX[2] - BOX[0]) / (BOX[3] - BOX[1])
    sides = []
    for _ in range(12):
        (box,) = made(record_of(picture, caption="a red box"))["instances"].gt_boxes.tensor.tolist()
        assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(whole, rel=0.05)
        sides.append(box[2] - box[0])
    assert 23 < min(sides) < max(sides) <= 48.1  # 0.5 to 1 times 24 * 120 / 60


@pytest.mark.parametrize(("sizes", "share"), [([20], 1.0), ([40], 0.5), ([80], 0.25)])
def test_the_shorter_sides_before_a_crop(
    tmp_path: Path, mapper: Callable[..., Any], sizes: list[int], share: float
) -> None:
    ramp = np.repeat(np.linspace(0, 250, HEIGHT, dtype=np.uint8)[:, None], WIDTH, axis=1)
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(tmp_path / "ramp.png")
    made = mapper("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [20, 20])
    made = mapper("INPUT.CROP.MIN_SIZES", sizes)
    images = [made(record_of(str(tmp_path / "ramp.png")))["image"].numpy() for _ in range(20)]
    ranges = [int(image.max()) - int(image.min()) for image in images if image.shape[1] == image.shape[2]]
    assert 3 < len(ranges) < 17, "half of the pictures are cropped, to squares"
    assert ranges == pytest.approx([250 * share] * len(ranges), abs=25)


@pytest.mark.parametrize(("probability", "changed"), [(0.0, 0), (0.5, 20), (1.0, 40)])
def test_colours_change_as_often_as_said(
    tmp_path: Path, mapper: Callable[..., Any], probability: float, changed: int
) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (100, 120, 140)).save(tmp_path / "plain.png")
    made = mapper(COLOR + "PROBABILITY", probability, COLOR + "STRENGTH", 0.4)
    drawn = [made(record_of(str(tmp_path / "plain.png")))["image"][:, 0, 0].tolist() for _ in range(40)]
    assert sum(color != [100, 120, 140] for color in drawn) == pytest.approx(changed, abs=9 * (0 < changed < 40))


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_colours_change_within_bounds(tmp_path: Path, mapper: Callable[..., Any], strength: float) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)).save(tmp_path / "grey.png")
    made = mapper(COLOR + "PROBABILITY", 1.0, COLOR + "STRENGTH", strength)
    # Contrast and saturation leave a picture of one grey as it is.
    values = [int(made(record_of(str(tmp_path / "grey.png")))["image"][0, 0, 0]) for _ in range(40)]
    assert 100 * (1 - strength) - 2 <= min(values) < 100 * (1 - 0.6 * strength)
    assert 100 * (1 + 0.6 * strength) < max(values) <= 100 * (1 + strength)


def test_saturation_moves_towards_grey_in_both_channel_orders() -> None:
    pixels = np.full((2, 2, 3), (200, 50, 100), dtype=np.uint8)
    pale = Saturation(0.5, 0.5, "RGB").get_transform(pixels).apply_image(pixels)
    assert pale.dtype == np.uint8
    grey = 0.299 * 200 + 0.587 * 50 + 0.114 * 100
    assert pale[0, 0].tolist() == pytest.approx([(value + grey) / 2 for value in (200, 50, 100)], abs=1)
    turned = np.ascontiguousarray(pixels[..., ::-1])
    other = Saturation(0.5, 0.5, "BGR").get_transform(turned).apply_image(turned)
    assert np.array_equal(other[..., ::-1], pale)


@pytest.mark.parametrize(("with_text", "texts"), [("swap_words", 2), ("off", 1)])
def test_flips_of_pictures_with_words(picture: str, mapper: Callable[..., Any], with_text: str, texts: int) -> None:
    made = mapper("INPUT.FLIP_WITH_TEXT", with_text, "INPUT.RANDOM_FLIP", "horizontal")
    plain, mirrored = float(BOX[0]), float(WIDTH - BOX[2])
    own = [made(record_of(picture, caption="the box on the left")) for _ in range(20)]
    seen = {(sample["caption"], sample["instances"].gt_boxes.tensor[0, 0].item()) for sample in own}
    assert seen == set([("the box on the left", plain), ("the box on the right", mirrored)][:texts])
    named = {made(record_of(picture))["instances"].gt_boxes.tensor[0, 0].item() for _ in range(20)}
    assert named == {plain, mirrored}, "class names are not words about this picture"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("INPUT.FLIP_WITH_TEXT", "on", "unknown INPUT.FLIP_WITH_TEXT 'on'; choose from"),
        ("INPUT.RANDOM_FLIP", "both", "unknown RANDOM_FLIP 'both'; choose from"),
        (JITTER + "SIZE", 0, "LARGE_SCALE_JITTER.SIZE is 0"),
        (JITTER + "MIN_SCALE", 3.0, "MIN_SCALE <= MAX_SCALE, but they are 3.0 and 2.0"),
        (COLOR + "PROBABILITY", 1.5, "COLOR_JITTER.PROBABILITY is 1.5"),
        (COLOR + "STRENGTH", -0.1, "COLOR_JITTER.STRENGTH is -0.1"),
        ("INPUT.CROP.MIN_SIZES", [], r"INPUT.CROP.MIN_SIZES is \[\]"),
    ],
)
def test_values_out_of_range_are_refused(tiny_cfg: CfgNode, key: str, value: Any, sentence: str) -> None:
    tiny_cfg.merge_from_list([JITTER + "ENABLED_ON", "CROP" not in key, "INPUT.CROP.ENABLED", True, key, value])
    with pytest.raises(ValueError, match=sentence):
        build_training_augmentations(tiny_cfg)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_colours_of_ssd_change_pixels_alone_and_all_four_ways(image_format: str) -> None:
    np.random.seed(0)
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[...] = (180, 60, 40) if image_format == "RGB" else (40, 60, 180)
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    grey, drawn, hues = 0, set(), set()
    for _ in range(60):
        pixels = T.AugInput(image.copy(), sem_seg=labels)
        transform = SsdColours(image_format)(pixels)
        assert pixels.image.dtype == np.uint8 and pixels.image.shape == image.shape
        assert (pixels.image == pixels.image[0, 0]).all()
        np.testing.assert_array_equal(pixels.sem_seg, labels)
        assert transform.apply_coords(np.array([[1.0, 2.0]])).tolist() == [[1, 2]]
        color = tuple(pixels.image[0, 0].tolist())
        color = color if image_format == "RGB" else color[::-1]
        drawn.add(color)
        hues.add(color[1] > color[2])
        grey += color == (180, 60, 40)
    assert 1 <= grey <= 12 and len(drawn) > 40  # a sixteenth keeps its colours
    assert hues == {True, False}  # red turns towards yellow, and towards blue


def test_semantic_crops_avoid_windows_of_one_class(tiny_cfg: Any) -> None:
    np.random.seed(0)
    options = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [16, 16]]
    options += ["INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MAX_SIZE_TRAIN", 64, "INPUT.RANDOM_FLIP", "none"]
    tiny_cfg.merge_from_list(options)
    labels = np.zeros((32, 64), dtype=np.uint8)
    labels[:, 32:] = 1
    labels[:, 40:] = 255  # ignored, so that it does not count

    def share_of_mixed_windows(share: float) -> float:
        tiny_cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = share
        policy = T.AugmentationList(build_semantic_augmentations(tiny_cfg, ignore_label=255))
        mixed = 0
        for _ in range(40):
            pixels = T.AugInput(np.zeros((32, 64, 3), dtype=np.uint8), sem_seg=labels)
            policy(pixels)
            assert pixels.sem_seg.shape == (16, 16)
            mixed += {0, 1} <= set(np.unique(pixels.sem_seg))
        return mixed / 40

    assert share_of_mixed_windows(1.0) < 0.6 < 0.9 < share_of_mixed_windows(0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["INPUT.LARGE_SCALE_JITTER.ENABLED_ON", True], "not for semantic training"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 1.5], r"1.5; give a share in \(0, 1\]"),
    ],
)
def test_semantic_policies_out_of_range_are_refused(tiny_cfg: Any, options: list[Any], message: str) -> None:
    tiny_cfg.merge_from_list(options)
    with pytest.raises(ValueError, match=message):
        build_semantic_augmentations(tiny_cfg, ignore_label=255)
