from grounding_dino.data.shapes.expressions import all_expressions, refer
from grounding_dino.data.shapes.scene import Scene, SceneObject, render_scene
from grounding_dino.data.shapes.vocabulary import TRAIN_PAIRS

import numpy as np


def _object(name, x, y, side, texture="plain"):
    mask = np.zeros((200, 200), dtype=bool)
    mask[y : y + side, x : x + side] = True
    color, shape = name.split()
    return SceneObject((color, shape), texture, float(side), mask)


def _captions(*objects):
    scene = Scene(np.zeros((200, 200, 3), dtype=np.uint8), list(objects))
    return {expression.caption: expression.index for kind in all_expressions(scene) for expression in kind}


def test_captions_name_the_object_that_a_reader_would_point_at():
    captions = _captions(
        _object("red circle", 10, 10, 20),
        _object("red circle", 100, 100, 60, texture="striped"),
        _object("green star", 80, 40, 30),
    )
    assert captions["the largest red circle"] == 1
    assert captions["the small red circle"] == 0
    assert captions["the striped red circle"] == 1
    assert captions["the green star"] == captions["the star"] == 2
    assert captions["the red circle left of the green star"] == 0
    assert captions["the red circle below the green star"] == 1
    assert captions["the leftmost shape"] == 0
    assert captions["the lowest circle"] == 1
    assert "the red circle" not in captions and "the circle" not in captions


def test_near_ties_are_left_unsaid():
    captions = _captions(_object("blue heart", 50, 10, 40), _object("blue heart", 52, 100, 42))
    assert not any("largest" in caption or "leftmost" in caption for caption in captions)
    assert captions["the topmost blue heart"] == 0


def test_every_caption_of_a_scene_belongs_to_one_object():
    for seed in range(20):
        scene = render_scene(TRAIN_PAIRS, 128, np.random.default_rng(seed))
        seen = {}
        for kind in all_expressions(scene):
            for expression in kind:
                assert seen.setdefault(expression.caption, expression.index) == expression.index
        chosen = refer(scene, 6, np.random.default_rng(0))
        assert len(chosen) == len({expression.caption for expression in chosen}) == 6
