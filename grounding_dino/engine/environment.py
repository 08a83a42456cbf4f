"""What a run runs on: the device, and a first log line that says which Detectron2 and which kernels are in use."""

from __future__ import annotations

import logging
import os

import torch
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def prefer_available_device(cfg: CfgNode) -> None:
    """Turn MODEL.DEVICE "cuda" into "cpu" where torch sees no GPU."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %r, but torch sees no GPU: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def detectron2_in_use() -> str:
    """One line: version and folder of the Detectron2 that `import detectron2` gives."""
    import detectron2

    import grounding_dino

    folder = os.path.dirname(os.path.abspath(detectron2.__file__))
    kind = "compat" if folder.startswith(grounding_dino.COMPAT_FOLDER) else "upstream"
    return f"detectron2 {detectron2.__version__} ({kind}) from {folder}"


def log_environment() -> None:
    """Log which Detectron2, torch and kernels a run uses."""
    logger.info("using %s, torch %s", detectron2_in_use(), torch.__version__)
