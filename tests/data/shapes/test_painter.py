from grounding_dino.data.shapes import painter
from grounding_dino.data.shapes.outlines import place_outline
from grounding_dino.data.shapes.vocabulary import COLORS

import numpy as np
import pytest


def test_coverage_has_the_area_of_the_outline_and_of_its_contour():
    # OpenCV also fills the pixels that the contour runs through: about half a pixel on either side.
    square = painter.rasterize(place_outline("square", 30.0, 1.0, 0.0))
    assert (square >= 128).sum() == pytest.approx(31**2, rel=0.07)
    ring = painter.rasterize(place_outline("ring", 60.0, 1.0, 0.0))
    middle = tuple(n // 2 for n in ring.shape)
    assert ring[middle] == 0
    assert (ring >= 128).sum() == pytest.approx(np.pi * (30.5**2 - 16**2), rel=0.07)


@pytest.mark.parametrize("texture", painter.TEXTURES)
@pytest.mark.parametrize("name", COLORS)
def test_a_texture_stays_nearest_to_its_own_color(texture, name):
    color = np.array(COLORS[name], dtype=np.float32)
    patch = painter.texture_patch(texture, color, 40, 50, np.random.default_rng(0))
    assert patch.shape == (40, 50, 3)
    names = list(COLORS)
    distances = np.linalg.norm(np.median(patch.reshape(-1, 3), axis=0) - np.array(list(COLORS.values())), axis=1)
    assert names[int(distances.argmin())] == name


def test_an_unknown_texture_is_refused():
    with pytest.raises(ValueError, match="unknown texture 'checked'"):
        painter.texture_patch("checked", np.zeros(3, dtype=np.float32), 4, 4, np.random.default_rng(0))


def test_backgrounds_and_noise_stay_in_range():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        canvas = painter.paint_background(64, rng)
        painter.paint_clutter(canvas, 5, rng)
        picture = painter.finish(canvas, rng)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
