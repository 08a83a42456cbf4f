"""What to say about a machine in a bug report."""

from __future__ import annotations

import importlib
import os
import platform
import sys

import torch
from tabulate import tabulate

_PACKAGES = ("torchvision", "numpy", "fvcore", "iopath", "cv2", "PIL", "pycocotools", "timm")


def _version(package: str) -> str:
    try:
        return str(getattr(importlib.import_module(package), "__version__", "installed"))
    except ImportError as error:
        return f"not installed ({error})"


def collect_env_info() -> str:
    """A table of versions, of the Detectron2 in use and where it lies, and of the GPUs."""
    import detectron2

    rows = [
        ("platform", f"{sys.platform} {platform.machine()}"),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{detectron2.__version__} @ {os.path.dirname(detectron2.__file__ or '')}"),
        ("PyTorch", f"{torch.__version__} @ {os.path.dirname(torch.__file__ or '')}"),
        ("PyTorch built for CUDA", str(torch.version.cuda)),
        ("GPU available", str(torch.cuda.is_available())),
    ]
    for index in range(torch.cuda.device_count()):
        capability = ".".join(str(part) for part in torch.cuda.get_device_capability(index))
        rows.append((f"GPU {index}", f"{torch.cuda.get_device_name(index)} (arch={capability})"))
    rows.extend((package, _version(package)) for package in _PACKAGES)
    return str(tabulate(rows, tablefmt="plain"))
