"""Masks as bitmaps and polygons, and their pasting into pictures."""

from __future__ import annotations

from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import detector_postprocess
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, polygons_to_bitmask

REFUSED = (ValueError, AssertionError)
SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]  # x 2..6, y 1..5
TRIANGLE = [0.0, 0.0, 8.0, 0.0, 0.0, 8.0]


@pytest.fixture
def polygons() -> PolygonMasks:
    return PolygonMasks([[np.array(SQUARE)], [np.array(TRIANGLE), np.array(SQUARE)], []])


def test_polygons_to_bitmask() -> None:
    mask = polygons_to_bitmask([np.array(SQUARE)], 8, 10)
    assert mask.shape == (8, 10) and mask.dtype == bool
    assert mask.sum() == 16 and mask[1:5, 2:6].all()
    assert not polygons_to_bitmask([], 3, 4).any()


def test_polygon_masks_measure(polygons: PolygonMasks) -> None:
    assert polygons.area().tolist() == [16, 32 + 16, 0]
    assert polygons.nonempty().tolist() == [True, True, False]
    assert polygons.get_bounding_boxes().tensor[:2].tolist() == [[2, 1, 6, 5], [0, 0, 8, 8]]


@pytest.mark.parametrize(
    ("item", "counts"),
    [
        (1, [2]),
        (slice(0, 2), [1, 2]),
        ([2, 0], [0, 1]),
        (torch.tensor([1, 1]), [2, 2]),
        (torch.tensor([True, False, True]), [1, 0]),
    ],
)
def test_polygon_masks_index(polygons: PolygonMasks, item: Any, counts: list[int]) -> None:
    assert [len(parts) for parts in polygons[item]] == counts


def test_polygon_masks_cat_and_check(polygons: PolygonMasks) -> None:
    assert len(PolygonMasks.cat([polygons, polygons])) == 6
    with pytest.raises(REFUSED):
        PolygonMasks([[np.array([1.0, 2.0, 3.0])]])
    with pytest.raises(REFUSED):
        PolygonMasks(np.zeros((2, 3)))  # type: ignore[arg-type]


def test_polygons_become_bitmasks(polygons: PolygonMasks) -> None:
    masks = BitMasks.from_polygon_masks(polygons, 8, 10)
    assert masks.tensor.shape == (3, 8, 10)
    assert tuple(masks.image_size) == (8, 10)
    assert masks.nonempty().tolist() == [True, True, False]
    assert masks.get_bounding_boxes().tensor.tolist()[0] == [2, 1, 6, 5]
    assert masks.get_bounding_boxes().tensor.tolist()[2] == [0, 0, 0, 0]
    assert BitMasks.from_polygon_masks([], 8, 10).tensor.shape == (0, 8, 10)


def test_bitmasks_index_cat_iterate() -> None:
    masks = BitMasks(np.eye(4, dtype=np.uint8)[None].repeat(3, axis=0))
    assert masks.tensor.dtype == torch.bool
    assert masks[0].tensor.shape == (1, 4, 4)
    assert len(masks[torch.tensor([True, False, True])]) == 2
    assert len(BitMasks.cat([masks, masks[:1]])) == 4
    assert [tuple(mask.shape) for mask in masks] == [(4, 4)] * 3
    with pytest.raises(REFUSED):
        BitMasks(torch.zeros(4, 4))


def test_crop_and_resize_agree(polygons: PolygonMasks) -> None:
    boxes = torch.tensor([[2.0, 1.0, 10.0, 5.0], [0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 4.0, 4.0]])
    from_polygons = polygons.crop_and_resize(boxes, 8)
    assert from_polygons.shape == (3, 8, 8) and from_polygons.dtype == torch.bool
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:, :4] = True  # the square fills the left half of the first box
    assert torch.equal(from_polygons[0], expected)
    from_bits = BitMasks.from_polygon_masks(polygons, 8, 10).crop_and_resize(boxes, 8)
    assert torch.equal(from_bits[0], expected)
    assert (from_bits[1] != from_polygons[1]).float().mean() < 0.15  # they rasterise the diagonal differently
    assert not from_bits[2].any() and not from_polygons[2].any()


def test_paste_masks_in_image() -> None:
    masks = torch.zeros(2, 4, 4)
    masks[0] = 1.0
    masks[1, :, :2] = 1.0  # the left half
    boxes = torch.tensor([[2.0, 1.0, 6.0, 5.0], [0.0, 0.0, 8.0, 4.0]])
    pasted = paste_masks_in_image(masks, boxes, (6, 10))
    assert pasted.shape == (2, 6, 10) and pasted.dtype == torch.bool
    assert pasted[0].sum() == 16 and pasted[0, 1:5, 2:6].all()
    assert pasted[1].sum() == 16 and pasted[1, :4, :4].all()
    soft = paste_masks_in_image(masks, boxes, (6, 10), threshold=-1)
    assert soft.dtype == torch.uint8 and soft[0, 2, 3] == 255
    assert paste_masks_in_image(masks[:0], boxes[:0], (6, 10)).shape == (0, 6, 10)


def test_detector_postprocess_rescales_clips_and_drops() -> None:
    found = Instances((10, 20))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 5.0], [4.0, 4.0, 4.0, 9.0], [10.0, 5.0, 30.0, 20.0]]))
    found.scores = torch.tensor([0.9, 0.8, 0.7])
    found.pred_masks = torch.ones(3, 1, 4, 4)
    result = detector_postprocess(found, 20, 60)
    assert result.image_size == (20, 60)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 30, 10], [30, 10, 60, 20]]
    assert result.scores.tolist() == pytest.approx([0.9, 0.7])
    assert result.pred_masks.shape == (2, 20, 60)
    inside = result.pred_masks[0, :10, :30]  # pasting rounds the corners
    assert inside[1:-1, 2:-2].all() and result.pred_masks[0].sum() == inside.sum()


def test_sem_seg_postprocess_removes_padding() -> None:
    scores = torch.zeros(2, 8, 8)
    scores[1, :4, :6] = 1.0
    result = sem_seg_postprocess(scores, (4, 6), 12, 18)
    assert result.shape == (2, 12, 18)
    assert (result[1] == 1).all() and (result[0] == 0).all()
