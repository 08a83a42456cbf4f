"""Uploaded pictures: every kind that cameras and programs write, and those that are refused in words."""

from __future__ import annotations

from pathlib import Path

from grounding_dino.web.uploads import read_upload

import numpy as np
import pytest
from PIL import Image


def _save(folder: Path, kind: str) -> Path:
    """A picture of 40 x 30 whose left half is red, as files of all kinds."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:, :20] = (255, 0, 0)
    picture, path = Image.fromarray(pixels), folder / f"picture.{kind.split('-')[0]}"
    if kind == "gif-animated":
        picture.save(path, save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")] * 3)
    elif kind == "png-alpha":
        picture.putalpha(128)
        picture.save(path)
    elif kind == "png-16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    elif kind == "jpg-cmyk":
        picture.convert("CMYK").save(path, quality=95)
    else:
        picture.save(path)
    return path


@pytest.mark.parametrize("kind", ["jpg", "webp", "bmp", "tiff", "gif-animated", "png-alpha", "png-16", "jpg-cmyk"])
def test_kinds_of_pictures(tmp_path: Path, kind: str) -> None:
    picture = read_upload(_save(tmp_path, kind), "mine", 1)
    assert picture.shape == (30, 40, 3) and picture.dtype == np.uint8
    assert picture[15, 5, 0] > 230 and picture[15, 35, 0] < 25


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    for size, words in (
        ((3000, 1000), "3000 x 1000 pixels, 3 megapixels; this page takes up to 2"),
        ((13500, 13500), "pixels"),
    ):
        path = tmp_path / "large.png"
        Image.new("1", size).save(path)
        path.write_bytes(path.read_bytes()[:200])  # decoding it would fail in other words
        with pytest.raises(ValueError, match=words) as refused:
            read_upload(path, "large.png", 2)
        assert str(tmp_path) not in str(refused.value)


def test_what_is_no_picture_is_refused_without_the_server_s_paths(tmp_path: Path) -> None:
    broken = _save(tmp_path, "bmp")
    broken.write_bytes(broken.read_bytes()[:500])
    words, script = tmp_path / "words.png", tmp_path / "script.png"
    words.write_text("no picture")
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")  # Pillow would start ghostscript
    for path, said in (
        (broken, "broken"),
        (words, "is not a picture"),
        (script, "is not a picture"),
        (tmp_path / "x", "is not"),
        (tmp_path, "is not a picture"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            read_upload(path, "mine.png", 2)
        assert "mine.png" in str(refused.value) and str(tmp_path) not in str(refused.value)
