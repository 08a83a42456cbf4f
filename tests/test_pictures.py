"""Pictures come to the model as Detectron2 brings them, with and without torch."""

from __future__ import annotations

from grounding_dino.pictures import PicturePreparation, shortest_edge_size

import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge


@pytest.mark.parametrize(("min_size", "max_size"), [(800, 1333), (192, 512), (33, 40)])
def test_sizes_are_detectron2s(min_size: int, max_size: int) -> None:
    rng = np.random.default_rng(0)
    for height, width in [(1, 5000), (480, 640), (640, 480), (333, 333), *rng.integers(1, 3000, (200, 2)).tolist()]:
        expected = ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
        assert shortest_edge_size(height, width, min_size, max_size) == tuple(max(1, side) for side in expected)


@pytest.mark.parametrize("input_format", ["RGB", "BGR"])
@pytest.mark.parametrize("size", [(37, 53), (120, 60), (64, 64)])
def test_pixels_are_detectron2s(input_format: str, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = PicturePreparation(48, 80, input_format)(picture)
    as_read = picture if input_format == "RGB" else picture[..., ::-1]
    transform = ResizeShortestEdge([48, 48], 80).get_transform(as_read)
    expected = transform.apply_image(as_read).transpose(2, 0, 1)
    np.testing.assert_array_equal(prepared["image"].numpy(), expected)
    assert (prepared["height"], prepared["width"]) == size


def test_a_size_of_zero_leaves_pictures_as_they_are() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(PicturePreparation(0)(picture)["image"].numpy(), picture.transpose(2, 0, 1))
