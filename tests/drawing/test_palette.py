"""The colours of categories: stable, apart for everybody, and what reads on them."""

from __future__ import annotations

from grounding_dino.drawing.palette import (
    PALETTE_SIZE,
    as_bytes,
    as_seen,
    color_of,
    contrast_ratio,
    contrasting,
    palette,
)

import numpy as np
import pytest


@pytest.mark.parametrize(("count", "least"), [(8, 15), (16, 15), (24, 10)])
def test_first_colours_stay_apart_for_everybody(count: int, least: float) -> None:
    """With normal sight, and as a protanope and a deuteranope see them; a difference of 2.3 is just noticeable."""
    views = as_seen(palette()[:count].astype(np.float64))
    for view in views:
        distance = np.linalg.norm(view[:, None] - view[None], axis=-1) + 1e3 * np.eye(count)
        assert distance.min() > least


def test_all_colours_differ_and_follow_from_the_category() -> None:
    colors = palette()
    assert colors.shape == (PALETTE_SIZE, 3) and len({tuple(color) for color in colors.tolist()}) == PALETTE_SIZE
    assert as_bytes(color_of(0)) == (230, 159, 0) and np.array_equal(color_of(3), color_of(3 + PALETTE_SIZE))
    assert np.array_equal(color_of("red circle"), color_of("red circle"))
    assert not np.array_equal(color_of("red circle"), color_of("blue star"))


def test_simulation_knows_what_the_colour_blind_confuse() -> None:
    red_green = as_seen(np.asarray([(200.0, 60, 60), (110.0, 125, 50)]))
    normal, protanope, deuteranope = np.linalg.norm(red_green[:, 0] - red_green[:, 1], axis=-1)
    assert deuteranope < normal / 2.5 and as_seen(np.full((1, 3), 255.0))[:, 0, 0] == pytest.approx(100, abs=0.01)


def test_text_reads_on_every_colour() -> None:
    assert contrast_ratio((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrasting((1.0, 1.0, 0.0)) == (0, 0, 0) and contrasting((0.0, 0.0, 0.6)) == (1, 1, 1)
    assert min(contrast_ratio(color_of(n), contrasting(color_of(n))) for n in range(PALETTE_SIZE)) >= 4.5
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 3), axis=-1).reshape(-1, 3)
    assert min(contrast_ratio(color, contrasting(color)) for color in grid) >= 4.5
