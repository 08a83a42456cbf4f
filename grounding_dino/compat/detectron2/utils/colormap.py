"""A palette whose neighbours stay apart, also for people with red-green colour blindness."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["colormap", "random_color"]

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


def _lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) linear RGB in [0, 1] -> CIE L*a*b*."""
    xyz = linear.clip(0.0, 1.0) @ np.asarray(_RGB_TO_XYZ).T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def _views(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) sRGB in 0..255 -> (3, N, 3) Lab as seen with normal, protanope and deuteranope vision."""
    srgb = rgb / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.stack([_lab(linear), *(_lab(linear @ np.asarray(m).T) for m in _COLOUR_BLINDNESS)])


@functools.lru_cache(maxsize=1)
def _palette() -> NDArray[np.float32]:
    """(PALETTE_SIZE, 3) RGB in 0..255: Okabe-Ito's colours, then each time the candidate farthest from all so far."""
    steps = np.linspace(0, 255, 12)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    views = _views(grid)
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


def _distance(views: NDArray[np.float64], color: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest Lab distance over the three kinds of vision, of each candidate to `color`."""
    return np.linalg.norm(views - _views(color[None]), axis=2).min(axis=0)


def colormap(rgb: bool = False, maximum: int = 255) -> NDArray[np.float32]:
    """The palette as a float array (PALETTE_SIZE, 3), RGB or BGR, scaled to `maximum` (255 or 1)."""
    if maximum not in (255, 1):
        raise ValueError(f"colormap's maximum must be 255 or 1, got {maximum!r}")
    colors = _palette() * (maximum / 255.0)
    return (colors if rgb else colors[:, ::-1]).astype(np.float32)


def random_color(rgb: bool = False, maximum: int = 255) -> NDArray[np.float32]:
    """One colour (3,) of the palette, drawn from numpy's global random state."""
    colors = colormap(rgb=rgb, maximum=maximum)
    return colors[np.random.randint(len(colors))]
