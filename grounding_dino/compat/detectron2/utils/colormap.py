"""The colours that categories are drawn in, with Detectron2's interface."""

from __future__ import annotations

from grounding_dino.drawing.palette import palette

import numpy as np
from numpy.typing import NDArray

__all__ = ["colormap", "random_color"]


def colormap(rgb: bool = False, maximum: int = 255) -> NDArray[np.float32]:
    """The palette as a float array (N, 3), RGB or BGR, scaled to `maximum` (255 or 1)."""
    if maximum not in (255, 1):
        raise ValueError(f"colormap's maximum must be 255 or 1, got {maximum!r}")
    colors = palette() * (maximum / 255.0)
    return (colors if rgb else colors[:, ::-1]).astype(np.float32)


def random_color(rgb: bool = False, maximum: int = 255) -> NDArray[np.float32]:
    """One colour (3,) of the palette, drawn from numpy's global random state."""
    colors = colormap(rgb=rgb, maximum=maximum)
    return colors[np.random.randint(len(colors))]
