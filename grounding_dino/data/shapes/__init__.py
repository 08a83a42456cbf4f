"""Drawn scenes of coloured shapes: a grounded data set that is rendered, not downloaded.

`vocabulary` names the categories and the held-out pairs, `outlines` gives each shape's contour, `painter` puts pixels
on a canvas, `scene` composes pictures, `expressions` refers to objects in words and `prepare` writes the files.
"""

from grounding_dino.data.shapes.scene import Scene, SceneObject, render_scene
from grounding_dino.data.shapes.vocabulary import COLORS, HELD_OUT_PAIRS, SHAPES, TRAIN_PAIRS, pair_name

__all__ = ["COLORS", "HELD_OUT_PAIRS", "SHAPES", "TRAIN_PAIRS", "Scene", "SceneObject", "pair_name", "render_scene"]
