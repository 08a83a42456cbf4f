"""Pictures in whatever form a caller has them -> RGB arrays, and the model's input of them.

Exported models read pictures with this module where torch is not installed: it is imported on use.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

IMAGE_FORMATS = ("BGR", "RGB")

RgbArray = NDArray[np.uint8]  # (H, W, 3)


def read_picture(path: str | os.PathLike[str], upright: bool = True) -> RgbArray:
    """Read a picture file as RGB; `upright` turns it as its EXIF orientation says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no picture, or is damaged or cut short.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no picture {str(path)!r}" + (" (it is a folder)" if file.is_dir() else ""))
    return _decoded(file, str(path), upright)


def decode_picture(encoded: bytes, name: str, upright: bool = True) -> RgbArray:
    """As :func:`read_picture`, of a file's content; `name` is what errors call it."""
    return _decoded(io.BytesIO(encoded), name, upright)


def _decoded(file: Path | io.BytesIO, name: str, upright: bool) -> RgbArray:
    try:
        with Image.open(file) as picture:
            return from_pil(picture, upright)
    except UnidentifiedImageError:
        raise ValueError(f"{name!r} is not a picture in a known format") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture {name!r} cannot be read: {error}") from error


def shortest_edge_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The (h, w) to which Detectron2's `ResizeShortestEdge` brings a picture, one pixel at least."""
    scale = float(min_size) / min(height, width)
    new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(new_height, new_width) > max_size:
        shrink = float(max_size) / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


class PicturePreparation:
    """RGB pictures to the model's input, resized as Detectron2 does it for testing; needs no model."""

    def __init__(self, min_size: int = 800, max_size: int = 1333, input_format: str = "RGB") -> None:
        """
        Args:
            min_size: length in pixels of the shorter side that the model sees; 0 leaves pictures as they are.
            max_size: upper bound of the longer side.
            input_format: order of channels that the model expects, "RGB" or "BGR".

        Raises:
            ValueError: another input format.
        """
        if input_format not in IMAGE_FORMATS:
            raise ValueError(f"unknown INPUT.FORMAT {input_format!r}; choose from {list(IMAGE_FORMATS)}")
        self.input_format = input_format
        self.max_bytes = 3 * min_size * max_size  # of an input; 0 where nothing bounds it
        self._min_size, self._max_size = min_size, max_size

    def __call__(self, picture: RgbArray) -> dict[str, Any]:
        """`image` (3, h, w) of uint8, resized, and the `height` and `width` of the picture (H, W, 3), to answer in."""
        import torch

        height, width = picture.shape[:2]
        return {"image": torch.from_numpy(self.resized(picture)), "height": height, "width": width}

    def resized(self, picture: RgbArray) -> NDArray[np.uint8]:
        """The picture (H, W, 3) as the model sees it: (3, h, w), its channels in the order of `input_format`.

        Pillow resizes, which smooths what it makes smaller, as for the published models' training.
        """
        height, width = picture.shape[:2]
        image = np.ascontiguousarray(picture if self.input_format == "RGB" else picture[..., ::-1])
        if self._min_size > 0:
            rows, columns = shortest_edge_size(height, width, self._min_size, self._max_size)
            image = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
        return np.array(image.transpose(2, 0, 1), order="C")


def from_pil(picture: Image.Image, upright: bool = True) -> RgbArray:
    """A PIL picture of any mode as RGB, turned as its EXIF orientation says; transparency is dropped.

    16-bit pictures keep their brightness: 65535 becomes 255.
    """
    if upright:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float64)
        highest = values.max(initial=0.0)
        if picture.mode.startswith("I;16") or highest > 255:
            values = values / 257.0
        elif picture.mode == "F" and highest <= 1.0:
            values = values * 255.0
        return _as_rgb(np.rint(values.clip(0, 255)).astype(np.uint8), "RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def from_array(array: NDArray[Any], image_format: str) -> RgbArray:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or bool as RGB.

    Raises:
        ValueError: another shape or dtype.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"a picture array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got the shape {array.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = np.rint(array / 257.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(
            f"a picture array holds uint8 (0 to 255), got {array.dtype}; for values in [0, 1] give "
            "(picture * 255).round().astype('uint8')"
        )
    return _as_rgb(array, image_format)


def from_tensor(tensor: torch.Tensor) -> RgbArray:
    """A tensor (3, H, W) RGB, (1, H, W) grey or (4, H, W) RGBA of uint8 as an array.

    Raises:
        ValueError: another shape or dtype.
    """
    import torch

    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or tensor.dtype != torch.uint8:
        raise ValueError(
            f"a picture tensor is (C, H, W) RGB of uint8 (0 to 255); got {tuple(tensor.shape)} of {tensor.dtype}"
        )
    return _as_rgb(tensor.detach().cpu().permute(1, 2, 0).numpy(), "RGB")


def to_rgb(picture: Any, image_format: str = "BGR") -> RgbArray:
    """Any one picture as an RGB array (H, W, 3) of uint8.

    Args:
        picture: a path; a PIL picture; an array in the channel order `image_format`; a tensor (C, H, W) RGB.

    Raises:
        TypeError: something else.
        ValueError: unusable content; the message says what is expected.
        FileNotFoundError: a path that does not exist.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"unknown image_format {image_format!r}; choose from {list(IMAGE_FORMATS)}")
    if isinstance(picture, (str, os.PathLike)):
        array = read_picture(picture)
    elif isinstance(picture, Image.Image):
        array = from_pil(picture)
    elif is_tensor(picture):
        array = from_tensor(picture)
    elif isinstance(picture, np.ndarray):
        array = from_array(picture, image_format)
    else:
        raise TypeError(f"a picture is a path, a PIL picture, an array or a tensor, not {type(picture).__name__}")
    if 0 in array.shape:
        raise ValueError(f"the picture is empty: {array.shape[1]} x {array.shape[0]} pixels")
    return array


def is_single(images: Any) -> bool:
    """Whether a predictor is given one picture, not a list of them or a stack."""
    if isinstance(images, np.ndarray) or is_tensor(images):
        return bool(images.ndim != 4)
    return not isinstance(images, (list, tuple))


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor, which it cannot be where nobody imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_rgb(array: NDArray[np.uint8], image_format: str) -> RgbArray:
    """uint8 with 1, 3 or 4 channels -> three in RGB order; alpha is dropped."""
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    array = array[..., :3]
    return np.ascontiguousarray(array[..., ::-1] if image_format == "BGR" else array)
