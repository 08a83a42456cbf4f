"""Seeds and library settings of a run."""

from __future__ import annotations

import datetime
import functools
import logging
import os
import random

import numpy as np
import torch


def seed_all_rng(seed: int | None = None) -> None:
    """Seed python's, numpy's and torch's generators; without a seed, with one drawn from time and process."""
    if seed is None:
        microseconds = int(datetime.datetime.now().strftime("%S%f"))
        seed = os.getpid() + microseconds + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info("using the random seed %d", seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


@functools.lru_cache  # once a process
def setup_environment() -> None:
    """Settings that every run wants: OpenCV leaves the GPU alone, which it would otherwise take in every process."""
    os.environ.setdefault("OPENCV_OPENCL_RUNTIME", "disabled")
    try:
        import cv2
    except ImportError:
        return
    cv2.ocl.setUseOpenCL(False)
