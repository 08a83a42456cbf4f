"""What a run runs on: device, threads, loggers, and a first log line that says what is in use."""

from __future__ import annotations

import logging
import os

from grounding_dino import COMPAT_FOLDER
from grounding_dino.ops import kernel_status

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)


def prefer_available_device(cfg: CfgNode) -> None:
    """Turn MODEL.DEVICE "cuda" into "cpu" where torch sees no GPU."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("MODEL.DEVICE is %r, but torch sees no GPU: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def set_up_logging(output_dir: str = "") -> None:
    """Show this project's messages as Detectron2 shows its own; with a folder also in its log.txt."""
    setup_logger(output_dir or None, distributed_rank=comm.get_rank(), name="grounding_dino", abbrev_name="gdino")


def detectron2_in_use() -> str:
    """One line: version and folder of the Detectron2 that `import detectron2` gives."""
    import detectron2

    folder = os.path.dirname(os.path.abspath(detectron2.__file__ or ""))
    kind = "compat" if folder.startswith(COMPAT_FOLDER) else "upstream"
    return f"detectron2 {detectron2.__version__} ({kind}) from {folder}"


def log_environment() -> None:
    """Log which Detectron2, torch and kernels a run uses; the kernels are built now where they are not yet."""
    kernels = "; ".join(f"{row.name}: {row.text}" for row in kernel_status())
    logger.info("using %s; torch %s; %s", detectron2_in_use(), torch.__version__, kernels)


def share_cpu_cores(cfg: CfgNode) -> None:
    """Where several processes of one machine compute on its CPU, give each its share of the cores."""
    processes = comm.get_local_size()
    if processes > 1 and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        torch.set_num_threads(max(1, cpu_cores() // processes))


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_deterministic() -> None:
    """Let torch use only operations that give the same bits again, and raise an error for those that have no such form.

    For the whole process, as torch knows no other scope. Bits are equal on equal hardware, versions and numbers of
    threads and processes only.
    """
    # Read when cuBLAS starts, which no part of a training has done yet; a value of the user's own stays.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
