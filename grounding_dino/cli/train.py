"""`train_net.py`: train, resume and evaluate any configuration."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments plus `--dataset`."""
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(
        epilog="examples:\n"
        "  train:     train_net.py --num-gpus 8 --config-file configs/grounding_dino/swin_t_finetune_coco.yaml\n"
        "  evaluate:  train_net.py --config-file shapes_tiny --eval-only\n"
        "  own data:  train_net.py --config-file shapes_tiny --dataset cells=train.json:images "
        "DATASETS.TRAIN \"('cells',)\" OUTPUT_DIR output/cells\n"
    )
    parser.description = "Train, resume or evaluate. --config-file takes a path or the short name of a packaged config."
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_folder",
        help="register a COCO-format data set under NAME, for DATASETS.TRAIN and DATASETS.TEST; repeatable",
    )
    return parser


def setup(args: argparse.Namespace) -> Any:
    """The frozen configuration of a run; also sets up logging and the seed."""
    from detectron2.engine import default_setup

    from grounding_dino.engine.environment import log_environment, prefer_available_device
    from grounding_dino.model_zoo import get_cfg, get_config_file

    cfg = get_cfg()
    args.config_file = str(get_config_file(args.config_file or "shapes_tiny"))
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.DATASETS.EXTRA = [*cfg.DATASETS.EXTRA, *args.dataset]
    prefer_available_device(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    log_environment()
    return cfg


def run(args: argparse.Namespace) -> Any:
    """What every process does."""
    import torch
    from detectron2.utils import comm

    from grounding_dino.engine.trainer import Trainer, evaluate_and_print

    cfg = setup(args)
    if args.eval_only:
        from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
        from grounding_dino.model_zoo import default_weights

        model = Trainer.build_model(cfg)
        weights = cfg.MODEL.WEIGHTS or default_weights(args.config_file)
        GroundingCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(weights, resume=args.resume)
        return evaluate_and_print(cfg, model)
    if comm.get_world_size() > 1 and cfg.MODEL.DEVICE == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_world_size()))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def processes_wanted(args: argparse.Namespace) -> int:
    """Processes on this machine: `--num-gpus`, but one where there is no GPU and the CPU was not asked for by name."""
    import torch

    on_cpu = any(key == "MODEL.DEVICE" and value == "cpu" for key, value in zip(args.opts[::2], args.opts[1::2]))
    if not on_cpu and args.num_gpus > 1 and not torch.cuda.is_available():
        print(
            f"--num-gpus {args.num_gpus}, but torch sees no GPU: one process trains on the CPU "
            "(MODEL.DEVICE cpu starts that many CPU processes)",
            file=sys.stderr,
        )
        return 1
    return args.num_gpus


def main(argv: Sequence[str] | None = None) -> Any:
    """Entry point of `train_net.py`."""
    from detectron2.engine import launch

    args = build_parser().parse_args(argv)
    return launch(
        run,
        processes_wanted(args),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
