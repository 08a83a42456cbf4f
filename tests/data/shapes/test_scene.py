from grounding_dino.data.shapes.scene import MAX_OBJECTS, MIN_VISIBLE, render_scene
from grounding_dino.data.shapes.vocabulary import TRAIN_PAIRS

import numpy as np
import pytest


def _render(seed, size=256):
    return render_scene(TRAIN_PAIRS, size, np.random.default_rng(seed))


def test_the_same_stream_gives_the_same_picture_and_masks():
    first, second = _render(3), _render(3)
    np.testing.assert_array_equal(first.image, second.image)
    assert [item.pair for item in first.objects] == [item.pair for item in second.objects]
    for one, other in zip(first.objects, second.objects):
        np.testing.assert_array_equal(one.mask, other.mask)


@pytest.mark.parametrize("seed", range(8))
def test_objects_stay_visible_and_their_boxes_are_those_of_their_masks(seed):
    scene = _render(seed)
    assert 3 <= len(scene.objects) <= MAX_OBJECTS
    assert not np.any(np.sum([item.mask for item in scene.objects], axis=0) > 1)
    for item in scene.objects:
        x, y, width, height = item.box
        assert item.mask[y : y + height, x : x + width].sum() == item.mask.sum()
        assert item.mask[y].any() and item.mask[y + height - 1].any()
        assert item.mask[:, x].any() and item.mask[:, x + width - 1].any()
        assert item.mask.sum() >= MIN_VISIBLE * item.size**2 - 1e-6
        assert max(width, height) >= 20
        assert item.pair in TRAIN_PAIRS


def test_a_scene_without_pairs_or_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        render_scene([], 256, np.random.default_rng(0))
    with pytest.raises(ValueError, match="32 pixels is too small"):
        _render(0, size=32)
