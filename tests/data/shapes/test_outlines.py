from grounding_dino.data.shapes.outlines import MAX_ROTATION, outline, place_outline
from grounding_dino.data.shapes.vocabulary import SHAPES

import numpy as np
import pytest


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_is_centred_and_fills_the_unit_frame_in_its_larger_extent(shape):
    points = np.concatenate(outline(shape))
    low, high = points.min(axis=0), points.max(axis=0)
    np.testing.assert_allclose(low, -high, atol=1e-9)
    assert high.max() == pytest.approx(1.0)
    assert high.min() > 0.4
    assert shape in MAX_ROTATION


def test_a_placed_outline_starts_at_the_origin_with_the_wanted_side():
    (square,) = place_outline("square", side=40.0, aspect=1.0, degrees=0.0)
    np.testing.assert_allclose(square.min(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(square.max(axis=0), 40)


def test_an_unknown_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown shape 'blob'.*circle"):
        outline("blob")
