"""What a training script does around the trainer: logging, seeds, writers, data parallelism."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap a model in DistributedDataParallel where there are several processes; alone, return it as it is.

    Args:
        fp16_compression: exchange gradients as float16.
        kwargs: for DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs:
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        kwargs["device_ids"] = None if on_cpu else [comm.get_local_rank()]
    parallel = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        parallel.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return parallel


def _get(cfg: Any, key: str, default: Any) -> Any:
    """The value of a dotted key, or `default` where the config does not have it."""
    node = cfg
    for part in key.split("."):
        if part not in node:
            return default
        node = node[part]
    return node


def default_setup(cfg: Any, args: Any) -> None:
    """Start a run: loggers, a record of environment, arguments and config, the seed, and library settings.

    Writes config.yaml and log.txt into OUTPUT_DIR.

    Args:
        args: the command line; what it lacks (`config_file`, `eval_only`) is left out.
    """
    output_dir = _get(cfg, "OUTPUT_DIR", "")
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir or None, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir or None, distributed_rank=rank)
    logger = logging.getLogger(__name__)
    logger.info("rank of this process: %d, of %d", rank, comm.get_world_size())
    logger.info("environment:\n%s", collect_env_info())
    logger.info("command line arguments: %s", args)
    if getattr(args, "config_file", ""):
        with PathManager.open(args.config_file, "r") as file:
            logger.info("content of %s:\n%s", args.config_file, file.read())
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        logger.info("running with the full config:\n%s", cfg.dump())
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        logger.info("full config written to %s", path)
    seed = _get(cfg, "SEED", -1)
    # Processes need different seeds: they draw different augmentations.
    seed_all_rng(None if seed < 0 else seed + rank)
    # Evaluation meets ever new picture sizes, for which searching the fastest algorithm does not pay.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = _get(cfg, "CUDNN_BENCHMARK", False)
    precision = _get(cfg, "FLOAT32_PRECISION", "")
    if precision:
        logger.info("precision of float32 matrix products: %s", precision)
        torch.set_float32_matmul_precision(precision)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the log, to metrics.json and to TensorBoard."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
