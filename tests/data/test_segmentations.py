import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.data.segmentations import filled_pixels, rle_fault, transformed_mask

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import transforms as T

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def mask():
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[5:15, 10:20] = 1
    return pixels


def _compressed(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def _listed(mask):
    column = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *edges, len(column)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if column[0] else runs}


def _all_forms(mask):
    in_bytes = {**_compressed(mask), "counts": _compressed(mask)["counts"].encode()}
    return [
        [[10, 5, 20, 5, 20, 15, 10, 15]],
        _compressed(mask),
        in_bytes,
        _listed(mask),
        mask,
        mask.astype(bool),
        7 * mask,
    ]


@pytest.mark.parametrize("form", range(7))
def test_every_form_gives_the_same_mask_and_follows_the_picture(mask, form):
    segmentation = _all_forms(mask)[form]
    size = (HEIGHT, WIDTH)
    np.testing.assert_array_equal(transformed_mask(segmentation, T.TransformList([]), size, size), mask.astype(bool))
    moves = T.TransformList(
        [T.HFlipTransform(WIDTH), T.ResizeTransform(20, 30, 40, 60), T.CropTransform(24, 8, 20, 30, 60, 40)]
    )
    expected = np.zeros((30, 20), dtype=bool)
    expected[2:22, :16] = True
    moved = transformed_mask(segmentation, moves, size, (30, 20))
    assert moved.dtype == bool
    np.testing.assert_array_equal(moved, expected)


def test_the_segmentation_is_not_changed(mask):
    polygons = [[10, 5, 20, 5, 20, 15, 10, 15]]
    transformed_mask(polygons, T.TransformList([T.HFlipTransform(WIDTH)]), (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    assert polygons == [[10, 5, 20, 5, 20, 15, 10, 15]]


@pytest.mark.parametrize("polygons", [[], [[1, 2, 3, 4]], [[40, 40, 50, 40, 50, 50]]])
def test_what_has_no_pixel_is_an_empty_mask(polygons):
    assert not transformed_mask(polygons, T.TransformList([]), (HEIGHT, WIDTH), (HEIGHT, WIDTH)).any()


def test_all_runs_of_compressed_masks_are_read():
    draws = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(side) for side in draws.integers(1, 40, 2))
        pixels = (draws.random((height, width)) < draws.random()).astype(np.uint8)
        assert rle_fault(_compressed(pixels), height, width) is None
        assert rle_fault(_listed(pixels), height, width) is None
    large = np.zeros((2000, 3000), dtype=np.uint8)
    assert rle_fault(_compressed(large), 2000, 3000) is None
    large[5:1900, 7:2800] = 1
    assert rle_fault(_compressed(large), 2000, 3000) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [100, 50]}, r"fill 150 pixels of 600 \(20 x 30\)"),
        ({"counts": [100, 1000]}, "fill 1100 pixels of 600"),
        ({"counts": [700, -100]}, "negative length"),
        ({"counts": [600.0]}, "neither text nor a list of whole numbers"),
        ({"counts": None}, "neither text nor a list"),
        ({"counts": ""}, "fill 0 pixels"),
        ({"counts": "\u00e9\u20ac"}, "not in COCO's compressed form"),
        ({"counts": "~" * 30}, "not in COCO's compressed form"),
        ({"counts": "o" * 300}, "not in COCO's compressed form"),
        ({"counts": "o"}, "break off within a run"),
        ({"size": [30, 20]}, r"has the size \[30, 20\], but its picture is \[20, 30\]"),
        ({"size": None}, "has the size None"),
    ],
)
def test_an_rle_that_does_not_fill_its_picture_is_an_error_in_words(mask, change, message):
    with pytest.raises(ValueError, match=message):
        transformed_mask({**_listed(mask), **change}, T.TransformList([]), (HEIGHT, WIDTH), (HEIGHT, WIDTH))


def test_a_compressed_rle_that_is_cut_off_is_an_error(mask):
    rle = _compressed(mask)
    cut = {**rle, "counts": rle["counts"][:-2]}
    assert "of 600 (20 x 30)" in rle_fault(cut, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (np.ones((30, 20), dtype=bool), r"\(30, 20\), but its picture \(20, 30\)"),
        (np.ones((20, 30, 3), dtype=np.uint8), "list of polygons, an RLE dict or an"),
        ("polygon", "not a str"),
        ([[1, 2, 3, 4, 5, 6, 7]], "not a list of x0, y0"),
        ([[[1, 2], [3, 4], [5, 6]]], "not a list of x0, y0"),
    ],
)
def test_what_is_no_segmentation_of_the_picture_is_an_error(segmentation, message):
    with pytest.raises(ValueError, match=message):
        transformed_mask(segmentation, T.TransformList([]), (HEIGHT, WIDTH), (HEIGHT, WIDTH))


def test_reading_many_masks_at_once_finds_what_reading_each_does():
    draws = np.random.default_rng(0)
    masks = [(draws.random(draws.integers(1, 40, 2)) < draws.random()).astype(np.uint8) for _ in range(1100)]
    good = [_compressed(mask) for mask in masks]
    for rle in good[1::2]:
        rle["counts"] = rle["counts"].encode()
    assert filled_pixels(good) == [mask.size for mask in masks]

    too_short = {**good[0], "counts": good[0]["counts"][:-1] or "0"}
    strange = ["", "o", "~", "\u00e9", b"\xff", "o" * 40 + "0", [3, 4], None, "o" * 7 + "0"]
    bad = [{"size": [5, 5], "counts": counts} for counts in strange]
    others = [[[1, 2, 3, 4, 5, 6]], None, 7]
    mixed = [good[2], *bad, good[3], *others, too_short, good[4]]
    found = filled_pixels(mixed)
    assert found == [masks[2].size, *[None] * 9, masks[3].size, *[None] * 3, found[-2], masks[4].size]
    assert found[-2] != masks[0].size
    assert filled_pixels([{"size": [7, 100], "counts": _negative(700, 100)}]) == [None]


def _negative(first, second):
    """Runs `first` and -`second`, compressed: groups of five bits, the lowest first."""
    groups = [value >> shift & 31 | (32 if shift < 10 else 0) for value in (first, -second) for shift in (0, 5, 10)]
    return bytes(48 + group for group in groups)
