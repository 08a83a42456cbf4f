"""Transforms, their inverses, and the augmentations that choose them."""

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.data.transforms.transform import clip_polygon_to_box
from PIL import Image


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)


def picture(h: int = 40, w: int = 60, channels: int = 3) -> np.ndarray:
    shape = (h, w, channels) if channels else (h, w)
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def polygon_area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


INVERTIBLE = [
    T.ResizeTransform(40, 60, 20, 90),
    T.HFlipTransform(60),
    T.VFlipTransform(40),
    T.CropTransform(5, 6, 20, 30, orig_w=60, orig_h=40),
    T.PadTransform(1, 2, 3, 4, orig_w=60, orig_h=40),
    T.NoOpTransform(),
    T.TransformList([T.ResizeTransform(40, 60, 20, 90), T.HFlipTransform(90), T.PadTransform(1, 2, 3, 4, 90, 20)]),
]


@pytest.mark.parametrize("transform", INVERTIBLE, ids=lambda t: type(t).__name__)
def test_inverse_undoes_coordinates_and_sizes(transform: T.Transform) -> None:
    points = np.random.default_rng(1).uniform(0, 40, (7, 2))
    back = transform.inverse().apply_coords(transform.apply_coords(points.copy()))
    np.testing.assert_allclose(back, points, atol=1e-9)
    image = picture()
    assert transform.inverse().apply_image(transform.apply_image(image)).shape == image.shape


@pytest.mark.parametrize("transform", INVERTIBLE, ids=lambda t: type(t).__name__)
def test_picture_and_coordinates_agree(transform: T.Transform) -> None:
    """A white block moves with its box."""
    image = np.zeros((40, 60), dtype=np.uint8)
    image[12:28, 10:20] = 255
    moved = transform.apply_image(image) > 127
    box = transform.apply_box(np.array([[10.0, 12.0, 20.0, 28.0]]))[0]
    rows, columns = np.nonzero(moved)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(found, box, atol=1.0)


def test_inverse_needs_the_original_size() -> None:
    with pytest.raises(ValueError, match="orig_w"):
        T.CropTransform(0, 0, 4, 4).inverse()
    with pytest.raises(ValueError, match="orig_w"):
        T.PadTransform(0, 0, 4, 4).inverse()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64, bool])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_resize_keeps_dtype_and_dimensions(dtype: type, channels: int) -> None:
    image = picture(channels=channels).astype(dtype)
    resized = T.ResizeTransform(40, 60, 20, 30).apply_image(image)
    assert resized.dtype == image.dtype
    assert resized.shape == (20, 30, *image.shape[2:])


def test_resize_is_pils_for_uint8_also_on_flipped_memory() -> None:
    image = picture()[:, ::-1]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((33, 21), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(T.ResizeTransform(40, 60, 21, 33).apply_image(image), expected)


def test_resize_of_labels_makes_no_new_labels() -> None:
    labels = np.random.default_rng(0).choice([0, 7, 255], (40, 60)).astype(np.uint8)
    for dtype in (np.uint8, np.int64):
        resized = T.ResizeTransform(40, 60, 23, 31).apply_segmentation(labels.astype(dtype))
        assert set(np.unique(resized)) <= {0, 7, 255}


def test_resize_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\)"):
        T.ResizeTransform(40, 60, 20, 30).apply_image(picture(41, 60))


def test_crop_clips_polygons() -> None:
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    crop = T.CropTransform(5, 2, 20, 4)
    (clipped,) = crop.apply_polygons([square.copy()])
    assert polygon_area(clipped) == pytest.approx(5 * 4)
    np.testing.assert_allclose([clipped.min(0), clipped.max(0)], [[0, 0], [5, 4]])
    assert crop.apply_polygons([square + 100]) == []


def test_clipping_keeps_the_area_of_a_concave_polygon() -> None:
    """A U, whose two arms both reach into the window."""
    u = np.array([[0, 0], [9, 0], [9, 9], [6, 9], [6, 3], [3, 3], [3, 9], [0, 9]], dtype=float)
    assert polygon_area(clip_polygon_to_box(u, (0, 5, 9, 9))) == pytest.approx(2 * 3 * 4)


def test_a_polygon_that_only_touches_the_window_is_dropped() -> None:
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    assert len(clip_polygon_to_box(square, (10, 0, 20, 10))) == 0


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((480, 1280), 800, 1333, (500, 1333)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((100, 100), 50, 40, (40, 40)),
    ],
)
def test_shortest_edge_sizes(size: tuple, short: int, longest: int, expected: tuple) -> None:
    assert T.ResizeShortestEdge.get_output_shape(*size, short, longest) == expected
    transform = T.ResizeShortestEdge(short, longest).get_transform(np.zeros((*size, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def test_shortest_edge_styles() -> None:
    image = picture()
    ranged = {T.ResizeShortestEdge((20, 22)).get_transform(image).new_h for _ in range(50)}
    assert ranged == {20, 21, 22}
    chosen = {T.ResizeShortestEdge((20, 22), sample_style="choice").get_transform(image).new_h for _ in range(50)}
    assert chosen == {20, 22}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    with pytest.raises(ValueError, match="two edge lengths"):
        T.ResizeShortestEdge((1, 2, 3))
    with pytest.raises(ValueError, match="'choice'"):
        T.ResizeShortestEdge((1, 2), sample_style="any")


def test_flip_probability_and_directions() -> None:
    image = picture()
    assert isinstance(T.RandomFlip(1.0).get_transform(image), T.HFlipTransform)
    assert isinstance(T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(image), T.VFlipTransform)
    assert isinstance(T.RandomFlip(0.0).get_transform(image), T.NoOpTransform)
    with pytest.raises(ValueError, match="one direction"):
        T.RandomFlip(vertical=True)


@pytest.mark.parametrize(
    ("kind", "size", "least", "most"),
    [
        ("absolute", (10, 100), (10, 60), (10, 60)),
        ("relative", (0.5, 0.25), (20, 15), (20, 15)),
        ("relative_range", (0.5, 0.5), (20, 30), (40, 60)),
        ("absolute_range", (10, 50), (10, 10), (40, 50)),
    ],
)
def test_random_crop_sizes(kind: str, size: tuple, least: tuple, most: tuple) -> None:
    for _ in range(20):
        crop = T.RandomCrop(kind, size).get_transform(picture())
        assert least[0] <= crop.h <= most[0] and least[1] <= crop.w <= most[1]
        assert crop.apply_image(picture()).shape[:2] == (crop.h, crop.w)


def test_category_constraint_avoids_windows_of_one_class() -> None:
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[:, 30:] = 1
    augmentation = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), single_category_max_area=0.75)
    mixed = 0
    for _ in range(20):
        transform = augmentation(T.AugInput(picture(), sem_seg=labels))
        mixed += len(np.unique(transform.apply_segmentation(labels))) == 2
    assert mixed >= 16  # by chance, it would be about half


def test_fixed_size_crop_crops_and_pads() -> None:
    transform = T.FixedSizeCrop((50, 30), pad_value=7.0).get_transform(picture())
    result = transform.apply_image(picture())
    assert result.shape == (50, 30, 3)
    assert (result[40:] == 7).all()
    assert (transform.apply_segmentation(np.zeros((40, 60), np.uint8))[40:] == 255).all()
    assert T.FixedSizeCrop((50, 30), pad=False).get_transform(picture()).apply_image(picture()).shape == (40, 30, 3)


def test_resize_scale_keeps_the_aspect_ratio() -> None:
    transform = T.ResizeScale(0.5, 0.5, 100, 100).get_transform(picture())
    assert (transform.new_h, transform.new_w) == (33, 50)


def test_colour_augmentations() -> None:
    image = picture()
    np.testing.assert_array_equal(T.RandomBrightness(0.0, 0.0).get_transform(image).apply_image(image), 0)
    np.testing.assert_array_equal(T.RandomContrast(0.0, 0.0).get_transform(image).apply_image(image), int(image.mean()))
    grey = T.RandomSaturation(0.0, 0.0).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    for augmentation in (T.RandomBrightness(1, 1), T.RandomContrast(1, 1), T.RandomSaturation(1, 1)):
        np.testing.assert_array_equal(augmentation.get_transform(image).apply_image(image), image)
    with pytest.raises(ValueError, match="RGB"):
        T.RandomSaturation(0, 1).get_transform(picture(channels=0))


def test_list_transforms_all_parts_and_returns_what_it_did() -> None:
    aug_input = T.AugInput(picture(), boxes=np.array([[0.0, 0.0, 10.0, 20.0]]), sem_seg=picture(channels=0))
    transforms = T.AugmentationList([T.Resize((20, 30)), T.HFlipTransform(30), T.RandomFlip(0.0)])(aug_input)
    assert len(transforms) == 3
    assert aug_input.image.shape == (20, 30, 3) and aug_input.sem_seg.shape == (20, 30)
    np.testing.assert_allclose(aug_input.boxes, [[25, 0, 30, 10]])
    image, again = T.apply_augmentations([T.Resize((20, 30))], picture())
    assert image.shape == (20, 30, 3) and len(again) == 1


def test_an_augmentation_gets_what_its_parameters_name() -> None:
    class NeedsBoxes(T.Augmentation):
        def get_transform(self, image, boxes):
            assert boxes.shape == (1, 4)
            return T.NoOpTransform()

    class AnyName(T.Augmentation):
        def get_transform(self, img):
            assert img.shape == (40, 60, 3)
            return T.NoOpTransform()

    boxes = np.zeros((1, 4))
    for augmentation in (NeedsBoxes(), AnyName()):
        assert isinstance(augmentation(T.AugInput(picture(), boxes=boxes)), T.NoOpTransform)

    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="'depth'"):
        NeedsDepth()(T.AugInput(picture()))


def test_bad_inputs_are_named() -> None:
    with pytest.raises(TypeError, match="int64"):
        T.AugInput(picture().astype(np.int64))
    with pytest.raises(TypeError, match="numpy array"):
        T.AugInput([[1, 2]])
    with pytest.raises(ValueError, match="crop_type"):
        T.RandomCrop("sometimes", (1, 1))


def test_augmentations_print_their_settings() -> None:
    assert "prob=0.25" in repr(T.RandomFlip(0.25))
    assert "ResizeShortestEdge" in repr(T.AugmentationList([T.ResizeShortestEdge((3, 4))]))
