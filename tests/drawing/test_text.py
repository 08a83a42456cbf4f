"""Letters that can be read at any size of the picture, in any script that the machine has a font for."""

from __future__ import annotations

import logging

from grounding_dino.drawing.text import _warn_of, draw_text, find_font, fit_text, label_size, line_width, text_size

import pytest


@pytest.mark.parametrize(
    ("width", "height", "least", "most"),
    [(1, 1, 10, 10), (64, 48, 10, 10), (640, 480, 12, 14), (800, 600, 12, 15), (1333, 800, 14, 20)]
    + [(4000, 3000, 44, 64), (30000, 20000, 60, 72)],
)
def test_letters_follow_the_picture(width: int, height: int, least: int, most: int) -> None:
    size = text_size(width, height)
    assert least <= size <= most and text_size(height, width) == size
    assert 0.08 * size <= line_width(size) <= 0.25 * size


@pytest.mark.parametrize("size", [13, 54])
def test_letters_have_their_height_and_room(size: int) -> None:
    """Capitals are about 0.73 of the size in DejaVu; nothing touches the plate's edge."""
    font = find_font("Xg", size)
    ink = draw_text("Xg", font)
    assert ink.shape[::-1] == label_size("Xg", font) and not ink[0].any() and not ink[-1].any()
    assert not ink[:, :2].any() and not ink[:, -2:].any()
    capital = draw_text("X", font).any(axis=1).nonzero()[0]
    assert 0.68 * size <= capital[-1] - capital[0] + 1 <= 0.82 * size


def test_long_texts_are_cut_and_keep_their_score() -> None:
    text, font = fit_text("a very long category name that fits no small picture", 14, 100)
    assert label_size(text, font)[0] <= 100 and text.endswith("…") and text.startswith("a ve")
    text, font = fit_text("a very long category name that fits no small picture 87%", 14, 150)
    assert label_size(text, font)[0] <= 150 and text.endswith("… 87%") and text.startswith("a ve")
    assert fit_text("cat\n 95%", 14, 100)[0] == "cat 95%" and fit_text("cat", 14, 1)[0] == "…"


@pytest.mark.parametrize("text", ["Katze ß é", "кошка", "γάτα", "قطة", "խոզ", "→ ½ ✓"])
def test_scripts_of_the_font_that_comes_with_matplotlib(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        font = find_font(text, 14)
    assert not caplog.records and draw_text(text, font).any()


def test_letters_that_no_font_has_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of.cache_clear()
    private = "\ue123"  # of the area for private use, with neighbours that exist
    with caplog.at_level(logging.WARNING):
        text, font = fit_text(f"cat {private}", 14, 200)
        fit_text(f"cat {private}", 14, 200)
    assert text == f"cat {private}" and draw_text(text, font).any()
    assert len(caplog.records) == 1 and private in caplog.text and "install" in caplog.text
