"""Projection of backbone maps, extra levels, and the two ways to a padded pyramid."""

import grounding_dino  # noqa: F401
from grounding_dino.modeling.input_projection import InputProjection, pyramid_of_padded, pyramid_of_pictures
from grounding_dino.structures import FeaturePyramid

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

SHAPES = [ShapeSpec(channels=4, stride=8), ShapeSpec(channels=6, stride=16)]


def test_extra_levels_come_from_the_last_map() -> None:
    torch.manual_seed(0)
    projection = InputProjection(SHAPES, 32, 4)
    maps = [torch.randn(2, 4, 9, 7), torch.randn(2, 6, 5, 4)]
    levels = projection(maps)
    assert [tuple(m.shape) for m in levels] == [(2, 32, 9, 7), (2, 32, 5, 4), (2, 32, 3, 2), (2, 32, 2, 1)]
    assert torch.equal(levels[2], projection[2](maps[1]))  # of the backbone's map, not of its projection
    assert torch.equal(levels[3], projection[3](levels[2]))
    assert set(projection.state_dict()) == {
        f"{i}.{j}.{n}" for i in range(4) for j in (0, 1) for n in ("weight", "bias")
    }


def test_no_extra_level_and_too_few() -> None:
    assert len(InputProjection(SHAPES, 64, 2)([torch.randn(1, 4, 2, 2), torch.randn(1, 6, 1, 1)])) == 2
    with pytest.raises(ValueError, match="NUM_FEATURE_LEVELS is 1, fewer than its 2 IN_FEATURES"):
        InputProjection(SHAPES, 32, 1)


def valid_part(pyramid: FeaturePyramid, picture: int, level: int, size: tuple[int, int]) -> Tensor:
    height, width = size
    mask = pyramid.padding_masks[level][picture]
    assert not mask[:height, :width].any() and mask.sum() == mask.numel() - height * width
    return pyramid.maps[level][picture, :, :height, :width]


def test_pyramid_of_pictures_pads_each_level() -> None:
    sizes = [[(4, 6), (2, 3)], [(5, 2), (3, 1)]]
    pictures = [[torch.randn(3, *size) for size in picture] for picture in sizes]
    pyramid = pyramid_of_pictures(pictures)
    assert pyramid.has_padding
    assert [tuple(m.shape) for m in pyramid.maps] == [(2, 3, 5, 6), (2, 3, 3, 3)]
    for i, picture in enumerate(pictures):
        for level, m in enumerate(picture):
            assert torch.equal(valid_part(pyramid, i, level, sizes[i][level]), m)
            assert pyramid.maps[level][i].sum().allclose(m.sum())  # zeros elsewhere
    same = pyramid_of_pictures([pictures[0], pictures[0]])
    assert not same.has_padding and not any(m.any() for m in same.padding_masks)


def test_pyramid_of_padded() -> None:
    maps = [torch.randn(2, 3, 4, 6), torch.randn(2, 3, 2, 3)]
    pyramid = pyramid_of_padded(maps, [(32, 40), (17, 48)], (32, 48))
    assert pyramid.has_padding and pyramid.maps is maps
    for level, (first, second) in enumerate([((4, 5), (3, 6)), ((2, 3), (2, 3))]):
        valid_part(pyramid, 0, level, first)
        valid_part(pyramid, 1, level, second)
    assert not pyramid_of_padded(maps, [(32, 48), (32, 48)], (32, 48)).has_padding


def test_select() -> None:
    pyramid = pyramid_of_pictures([[torch.full((1, 1, n), float(n))] for n in (1, 2, 3)])
    assert pyramid.select([0, 1, 2]) is pyramid
    chosen = pyramid.select([2, 0, 2])
    assert chosen.maps[0][:, 0, 0, 0].tolist() == [3, 1, 3] and chosen.has_padding
    assert chosen.padding_masks[0][:, 0].sum(1).tolist() == [0, 2, 0]
