"""Colours whose neighbours stay apart, also for people with red-green colour blindness, and what reads on them."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Color = Sequence[float] | NDArray[np.floating]  # RGB in [0, 1]

PALETTE_SIZE = 80

# Okabe and Ito, "Color Universal Design" (2008), without black.
_OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Machado, Oliveira and Fernandes (2009), severity 1: what a protanope and a deuteranope see, in linear RGB.
_COLOUR_BLINDNESS = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
)
_RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_LUMINANCE = np.asarray(_RGB_TO_XYZ[1])


def color_of(category: int | str) -> NDArray[np.float32]:
    """The colour (3,) RGB in [0, 1] of a category by its index, or of a phrase by its letters: always the same."""
    number = zlib.crc32(category.encode()) if isinstance(category, str) else category
    color: NDArray[np.float32] = palette()[number % PALETTE_SIZE] / np.float32(255)
    return color


@functools.lru_cache(maxsize=1)
def palette() -> NDArray[np.float32]:
    """(PALETTE_SIZE, 3) RGB in 0..255: Okabe-Ito's colours, then each time the candidate farthest from all so far."""
    steps = np.linspace(0, 255, 12)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    views = as_seen(grid)
    lightness = views[0, :, 0]
    usable = (lightness > 30) & (lightness < 92) & (np.ptp(grid, axis=1) > 40)  # no near-blacks, whites or greys
    grid, views = grid[usable], views[:, usable]
    chosen = [np.asarray(color, dtype=np.float64) for color in _OKABE_ITO]
    distance = np.full(len(grid), np.inf)
    for color in chosen:
        distance = np.minimum(distance, _distance(views, color))
    while len(chosen) < PALETTE_SIZE:
        chosen.append(grid[int(distance.argmax())])
        distance = np.minimum(distance, _distance(views, chosen[-1]))
    return np.stack(chosen).astype(np.float32)


def as_seen(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 3) sRGB in 0..255 -> (3, N, 3) CIE L*a*b* as seen with normal, protanope and deuteranope vision."""
    linear = _linear(rgb / 255.0)
    return np.stack([_lab(linear), *(_lab(linear @ np.asarray(m).T) for m in _COLOUR_BLINDNESS)])


def contrast_ratio(one: Color, other: Color) -> float:
    """WCAG 2's contrast of two colours, from 1 (none) to 21 (black on white); text needs 4.5."""
    darker, lighter = sorted(float(_linear(np.asarray(color)) @ _LUMINANCE) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def contrasting(color: Color) -> tuple[float, float, float]:
    """Black or white, whichever reads better on `color`: at least 4.58 in WCAG 2's contrast, on any colour."""
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return black if contrast_ratio(color, black) >= contrast_ratio(color, white) else white


def as_bytes(color: Color) -> tuple[int, int, int]:
    """RGB in [0, 1] -> integers in 0..255."""
    red, green, blue = (round(255 * float(value)) for value in color)
    return red, green, blue


def _linear(srgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB in [0, 1] -> the light that it stands for."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) linear RGB in [0, 1] -> CIE L*a*b*."""
    xyz = linear.clip(0.0, 1.0) @ np.asarray(_RGB_TO_XYZ).T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def _distance(views: NDArray[np.float64], color: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest Lab distance over the three kinds of vision, of each candidate to `color`."""
    nearest: NDArray[np.float64] = np.linalg.norm(views - as_seen(color[None]), axis=2).min(axis=0)
    return nearest
