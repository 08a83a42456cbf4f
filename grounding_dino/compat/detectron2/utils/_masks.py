"""One object's mask in any of the forms that annotations and predictions come in."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray


class GenericMask:
    """A mask given as polygons, run lengths or a binary array; the other forms are made when asked for.

    Args:
        mask_or_polygons: a list of flat polygons [x0, y0, x1, y1, ...], a COCO run-length dict (compressed or
            not), or an array (height, width) of 0/1.
        height, width: the picture's size in pixels.

    Raises:
        ValueError: for another form, or a size that is not the picture's.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height = height
        self.width = width
        self._mask: NDArray[np.uint8] | None = None
        self._polygons: list[NDArray[np.float64]] | None = None
        self._has_holes: bool | None = None
        given = mask_or_polygons
        if isinstance(given, dict):
            given = self._decode(given)
        if isinstance(given, (list, tuple)):
            self._polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in given]
        elif isinstance(given, np.ndarray):
            if given.shape != (height, width):
                raise ValueError(f"the mask is {given.shape}, the picture {(height, width)} (height, width)")
            self._mask = (given != 0).astype(np.uint8)
        else:
            raise ValueError(f"a mask is polygons, run lengths or an array, got {type(given).__name__}")

    def _decode(self, rle: dict[str, Any]) -> NDArray[np.uint8]:
        if isinstance(rle.get("counts"), list):
            rle = mask_util.frPyObjects(rle, *rle["size"])
        if tuple(rle["size"]) != (self.height, self.width):
            raise ValueError(f"the mask is {tuple(rle['size'])}, the picture {(self.height, self.width)}")
        return np.asarray(mask_util.decode(rle))

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The mask as an array (height, width) of 0 and 1."""
        if self._mask is None:
            self._mask = self.polygons_to_mask(self.polygons)
        return self._mask

    @property
    def polygons(self) -> list[NDArray[np.float64]]:
        """The outlines as flat arrays [x0, y0, x1, y1, ...]; the outlines of holes are among them."""
        if self._polygons is None:
            assert self._mask is not None
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the mask has holes; a mask given as polygons has none by definition."""
        if self._has_holes is None:
            self._has_holes = False if self._mask is None else self.mask_to_polygons(self._mask)[1]
        return self._has_holes

    def mask_to_polygons(self, mask: NDArray[Any]) -> tuple[list[NDArray[np.float64]], bool]:
        """Trace a mask: its outlines in continuous coordinates, and whether some of them are holes."""
        contours, hierarchy = cv2.findContours(
            np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        if hierarchy is None:
            return [], False
        has_holes = bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())
        outlines = [contour.reshape(-1).astype(np.float64) + 0.5 for contour in contours]
        return [outline for outline in outlines if len(outline) >= 6], has_holes

    def polygons_to_mask(self, polygons: list[Any]) -> NDArray[np.uint8]:
        """Fill polygons (their union) with COCO's rasterisation."""
        usable = [np.asarray(polygon, dtype=np.float64).tolist() for polygon in polygons if len(polygon) >= 6]
        if not usable:
            return np.zeros((self.height, self.width), dtype=np.uint8)
        rle = mask_util.merge(mask_util.frPyObjects(usable, self.height, self.width))
        return np.asarray(mask_util.decode(rle))

    def area(self) -> int:
        """The number of set pixels."""
        return int(self.mask.sum())

    def bbox(self) -> NDArray[np.float64]:
        """The tight box (4,) XYXY; zeros when the mask is empty."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return np.zeros(4)
        return np.asarray([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def segments_of(panoptic_seg: Any, segments_info: list[dict[str, Any]] | None) -> list[tuple[dict[str, Any], Any]]:
    """Split an id map (H, W) into (segment record, binary mask), only of ids that occur.

    Without records, as Panoptic DeepLab gives it, an id is category * 1000 + instance and -1 is nothing.
    """
    ids = np.asarray(panoptic_seg.cpu() if hasattr(panoptic_seg, "cpu") else panoptic_seg)
    present = set(np.unique(ids).tolist())
    if segments_info is None:
        segments_info = [
            {"id": i, "category_id": i // 1000, "isthing": i % 1000 != 0} for i in sorted(present) if i >= 0
        ]
    return [(record, ids == record["id"]) for record in segments_info if record["id"] in present]
