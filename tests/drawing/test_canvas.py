"""What is painted where: frames of whole pixels, small boxes that stay visible, masks, segments, plates."""

from __future__ import annotations

from grounding_dino.drawing.canvas import enlarged, fill_mask, fill_segments, frame_of, outline_box, paint_plate
from grounding_dino.drawing.text import find_font, label_size

import numpy as np
import pytest

RED = (1.0, 0.0, 0.0)


@pytest.fixture
def canvas() -> np.ndarray:
    return np.full((100, 120, 3), 200, dtype=np.uint8)


def red(canvas: np.ndarray) -> np.ndarray:
    return (canvas == (255, 0, 0)).all(axis=-1)


def outline(canvas: np.ndarray, box: list[float], width: int) -> None:
    frame = frame_of(np.asarray(box), width, (canvas.shape[1], canvas.shape[0]))
    if frame is not None:
        outline_box(canvas, frame, RED, width)


def test_a_frame_is_on_the_edge_and_as_wide_as_asked(canvas: np.ndarray) -> None:
    outline(canvas, [20.0, 30, 60, 80], 4)
    expected = np.zeros((100, 120), dtype=bool)
    expected[28:82, 18:62] = True
    expected[32:78, 22:58] = False
    assert np.array_equal(red(canvas), expected)
    assert canvas[50, 40].tolist() == [200] * 3 and canvas[5, 5].tolist() == [200] * 3
    assert canvas[50, 17, 0] < 100 > canvas[50, 22, 0]  # the casing


def test_a_frame_at_the_border_is_inside(canvas: np.ndarray) -> None:
    outline(canvas, [-30.0, 0, 120, 100], 3)
    assert red(canvas)[:3].all() and red(canvas)[-3:].all() and red(canvas)[:, :3].all() and red(canvas)[:, -3:].all()
    assert not red(canvas)[3:-3, 3:-3].any()


def test_what_is_outside_is_not_drawn(canvas: np.ndarray) -> None:
    outline(canvas, [130.0, 10, 150, 20], 3)
    outline(canvas, [10.0, -20, 30, -5], 3)
    assert (canvas == 200).all()
    assert frame_of(np.asarray([130.0, 10, 150, 20]), 3, (120, 100)) is None


@pytest.mark.parametrize("side", [0.0, 0.4, 1, 2, 3, 5, 8])
def test_small_boxes_are_seen_and_not_covered(canvas: np.ndarray, side: float) -> None:
    outline(canvas, [50.0, 50, 50 + side, 50 + side], 2)
    rows = np.flatnonzero(red(canvas).any(axis=1))
    assert 6 <= rows[-1] - rows[0] + 1 <= side + 6
    assert not red(canvas)[int(50 + side / 2), int(50 + side / 2)]


def test_masks_are_blended_and_outlined(canvas: np.ndarray) -> None:
    mask = np.zeros((100, 120), dtype=np.uint8)
    mask[20:60, 30:80] = 1
    fill_mask(canvas, mask, RED, 0.5)
    assert canvas[40, 50].tolist() == pytest.approx([228, 100, 100], abs=1) and canvas[10, 10].tolist() == [200] * 3
    assert (canvas[mask == 0] == 200).all()
    fill_mask(canvas, mask, RED, 0.0, outline=2)
    assert red(canvas)[20, 35:75].all() and not red(canvas)[40, 50]
    before = canvas.copy()
    fill_mask(canvas, np.zeros_like(mask), RED, 0.5, outline=2)
    assert np.array_equal(canvas, before)


def test_segments_have_white_borders(canvas: np.ndarray) -> None:
    segments = np.zeros((100, 120), dtype=np.uint16)
    segments[:50], segments[50:, :60] = 1, 2
    fill_segments(canvas, segments, [RED, (0.0, 0.0, 1.0)], 0.6, 1)
    assert canvas[20, 20].tolist() == [233, 80, 80] and canvas[80, 20].tolist() == [80, 80, 233]
    assert canvas[80, 100].tolist() == [200] * 3 and canvas[50, 20].tolist() == [255] * 3


@pytest.mark.parametrize("corner", [(10, 20), (-5, -5), (110, 95), (300, 300)])
def test_plates_are_opaque_and_cut_at_the_border(canvas: np.ndarray, corner: tuple[int, int]) -> None:
    font = find_font("cat", 14)
    width, height = label_size("cat", font)
    paint_plate(canvas, "cat", corner, font, (1.0, 1.0, 0.0))
    inside = np.zeros(canvas.shape[:2], dtype=bool)
    inside[max(corner[1], 0) : corner[1] + height, max(corner[0], 0) : corner[0] + width] = True
    assert (canvas[~inside] == 200).all() and (canvas[inside] != 200).any(axis=-1).all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_picture_given_stays(scale: float) -> None:
    picture = np.zeros((10, 20, 3), dtype=np.uint8)
    copy = enlarged(picture[:, ::-1], scale)
    assert copy.shape == (10 * scale, 20 * scale, 3) and copy.flags.c_contiguous
    copy[:] = 9
    assert not picture.any()
