"""Text-prompted detection, grounding and segmentation, native to Detectron2.

Importing this package makes `detectron2` importable: where no upstream Detectron2 is installed, the compact
implementation in `grounding_dino/compat` is appended to the end of `sys.path`, so upstream always wins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

__version__ = "0.1.0"

COMPAT_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compat")

if importlib.util.find_spec("detectron2") is None:
    sys.path.append(COMPAT_FOLDER)

# Public name -> module that defines it; imported on first use, so that `import grounding_dino` stays cheap.
_PUBLIC = {
    "add_grounding_dino_config": "grounding_dino.config",
    "get_cfg": "grounding_dino.model_zoo",
    "load_predictor": "grounding_dino.predictor",
    "GroundingPredictor": "grounding_dino.predictor",
}

if TYPE_CHECKING:  # the same for type checkers, which do not see through a table
    from grounding_dino.config import add_grounding_dino_config
    from grounding_dino.model_zoo import get_cfg
    from grounding_dino.predictor import GroundingPredictor, load_predictor

__all__ = ["GroundingPredictor", "__version__", "add_grounding_dino_config", "get_cfg", "load_predictor"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
