"""Uploaded pictures: read within limits, with sentences for their sender that name no path of the server."""

from __future__ import annotations

from pathlib import Path

from grounding_dino.pictures import RgbArray, from_pil

from PIL import Image, UnidentifiedImageError

# Those that browsers and cameras write. Others stay closed: Pillow hands PostScript, say, to a program of its own.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def read_upload(path: str | Path, name: str, max_megapixels: float) -> RgbArray:
    """The RGB picture (H, W, 3) of an uploaded file, upright; of an animation the first frame.

    Args:
        name: what its sender calls it, for messages.
        max_megapixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: no picture, a broken one, or one that is too large.
    """
    try:
        Image.init()
        with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as picture:
            width, height = picture.size
            if width * height > max_megapixels * 1e6:
                raise ValueError(
                    f"The picture {name} has {width} x {height} pixels, {width * height / 1e6:.0f} megapixels; this "
                    f"page takes up to {max_megapixels:g}. Make it smaller."
                )
            return from_pil(picture)
    except (UnidentifiedImageError, FileNotFoundError, IsADirectoryError):  # they name the server's path
        raise ValueError(
            f"The file {name} is not a picture that can be read. JPEG, PNG, WebP, GIF, TIFF, BMP and AVIF can."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"The picture {name} has far too many pixels. Make it smaller.") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"The picture {name} is broken or cut short ({error}). Save it again, or try another."
        ) from error
