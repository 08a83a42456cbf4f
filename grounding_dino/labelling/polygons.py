"""Masks as polygons, for formats and tools that know no run lengths."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask


def polygons_of(rle: dict[str, Any]) -> list[list[float]]:
    """The outlines of a mask's parts, [x0, y0, x1, y1, ...] in pixels, the largest first; holes are filled.

    They run through the middle of the outermost pixels: half a pixel further right and down than OpenCV counts. Parts
    of a pixel's width have no outline; [] where no part has one.
    """
    mask = np.ascontiguousarray(coco_mask.decode(rle))
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = {place: cv2.contourArea(outline) for place, outline in enumerate(outlines)}
    kept = sorted((place for place, area in areas.items() if area > 0), key=lambda place: -areas[place])
    return [(outlines[place].reshape(-1).astype(np.float64) + 0.5).tolist() for place in kept]
