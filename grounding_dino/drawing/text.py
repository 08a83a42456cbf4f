"""Fonts that have the letters of a text, and texts made to fit."""

from __future__ import annotations

import functools
import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

MIN_TEXT_SIZE, MAX_TEXT_SIZE = 10, 72  # pixels

_DEJAVU = "DejaVuSans.ttf"
# Tried in this order behind DejaVu, which has the letters of Europe and the Near East; the first that has all of a text
# is taken. "" is Pillow's own.
_FONTS = (
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "seguiemj.ttf",
    "",
)
_ASIDE, _ABOVE = 0.36, 0.10  # room around a label's text, in shares of its size


def text_size(width: int, height: int) -> int:
    """The size of a label's letters in pixels, in a picture of that many pixels.

    14 up to about 900 x 900, so that they can be read as they are; then in proportion, since larger pictures are looked
    at as a whole; down to 10 in those that are smaller than a thumbnail.
    """
    side = (width * height) ** 0.5
    return int(np.clip(round(max(min(side / 32, 14.0), side / 64)), MIN_TEXT_SIZE, MAX_TEXT_SIZE))


def line_width(size: int) -> int:
    """The width of a box's line in pixels beside letters of `size`."""
    return max(1, round(size / 6.5))


def find_font(text: str, size: int) -> Any:
    """A font of `size` pixels that can draw all of `text`, else the one that lacks the fewest of its letters.

    What no font of this machine can draw is said once in the log; it appears as empty boxes.
    """
    letters = frozenset(text)
    name, missing = _font_for(letters)
    if missing:
        _warn_of(missing)
    return _load_font(name, size)


def fit_text(text: str, size: int, width: int) -> tuple[str, Any]:
    """One line that fits on a label `width` pixels wide, and its font; what is too long is cut at its end with "…".

    A short last word stays: it is the score.
    """
    text = " ".join(text.split())
    font = find_font(text, size)
    if label_size(text, font)[0] <= width:
        return text, font
    name, _, last = text.rpartition(" ")
    if not name or len(last) > 6 or label_size(f"… {last}", font)[0] > width:
        name, last = text, ""
    kept = len(name)
    while kept > 0:
        kept -= 1
        text = f"{name[:kept].rstrip()}… {last}".rstrip()
        if label_size(text, font)[0] <= width:
            break
    return text, font


def label_size(text: str, font: Any) -> tuple[int, int]:
    """Width and height in pixels of a label; the height is the same for all texts of a font."""
    ascent, descent = font.getmetrics()
    aside, above = _room(font)
    return int(np.ceil(font.getlength(text))) + 2 * aside, ascent + descent + 2 * above


def draw_text(text: str, font: Any) -> NDArray[np.uint8]:
    """The ink (h, w) in 0..255 of a text on a label of `label_size`."""
    label = Image.new("L", label_size(text, font))
    aside, above = _room(font)
    ImageDraw.Draw(label).text((aside, above), text, fill=255, font=font)
    return np.asarray(label, dtype=np.uint8)


def _room(font: Any) -> tuple[int, int]:
    return max(2, round(_ASIDE * font.size)), max(1, round(_ABOVE * font.size))


@functools.cache
def _fonts() -> tuple[str, ...]:
    """The fonts of this machine, the most wanted first: Matplotlib's DejaVu, so that all machines draw alike."""
    spec = importlib.util.find_spec("matplotlib")
    copies = [Path(spec.origin).parent / "mpl-data/fonts/ttf" / _DEJAVU] if spec and spec.origin else []
    names = (*map(str, copies), _DEJAVU, *_FONTS)
    return tuple(name for name in names if _load_font(name, 16) is not None)


@functools.lru_cache(maxsize=256)
def _load_font(name: str, size: int) -> Any:
    """A font by file name at a pixel size; None where this machine lacks it."""
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _has_glyph(name: str, letter: str) -> bool:
    font = _load_font(name, 16)
    missing = font.getmask("\uffff")  # a non-character: every font draws its placeholder
    glyph = font.getmask(letter)
    return glyph.size != missing.size or bytes(glyph) != bytes(missing)


@functools.lru_cache(maxsize=1024)
def _font_for(letters: frozenset[str]) -> tuple[str, frozenset[str]]:
    """The font that lacks the fewest letters, and which those are."""
    lacking = {
        name: frozenset(letter for letter in letters if not letter.isspace() and not _has_glyph(name, letter))
        for name in _fonts()
    }
    best = min(lacking, key=lambda name: len(lacking[name]))  # of equals the first
    return best, lacking[best]


@functools.lru_cache(maxsize=64)
def _warn_of(letters: frozenset[str]) -> None:
    logger.warning(
        "no font of this machine has %s: they are drawn as empty boxes; install one that does, such as fonts-noto-cjk "
        "for Chinese, Japanese and Korean",
        " ".join(sorted(letters)),
    )
