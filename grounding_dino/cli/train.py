"""`train_net.py`: train, resume and evaluate any configuration."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments plus `--dataset` and `--warm-start`."""
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(
        epilog="examples:\n"
        "  train:     train_net.py --num-gpus 8 --config-file configs/grounding_dino/swin_t_finetune_coco.yaml\n"
        "  evaluate:  train_net.py --config-file shapes_tiny --eval-only\n"
        "  own data:  train_net.py --config-file shapes_tiny --dataset cells=train.json:images "
        "DATASETS.TRAIN \"('cells',)\" DATASETS.TEST \"('cells',)\" OUTPUT_DIR output/cells\n"
        "  on a CPU:  train_net.py --num-gpus 0 ... (one process), --num-gpus 2 ... MODEL.DEVICE cpu (two)\n"
    )
    parser.description = "Train, resume or evaluate. --config-file takes a path or the short name of a packaged config."
    # Detectron2's fixed port lets two runs on one machine collide; several machines have to name theirs anyway.
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_folder",
        help="register a COCO-format data set under NAME, for DATASETS.TRAIN and DATASETS.TEST; repeatable",
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="take from MODEL.WEIGHTS what fits and list the rest, instead of an error (MODEL.WARM_START_ON True)",
    )
    return parser


# ------------------------------------------------------------------------------------------------ configuration


def load_config(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration that the arguments ask for.

    `args.config_file` becomes the path of its file, `args.device` the device asked for, be it there or not.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: an unknown key, a value that does not fit, or arguments that are no KEY VALUE pairs.
    """
    from grounding_dino.data.datasets import expand_config, parse_dataset_argument
    from grounding_dino.engine.environment import prefer_available_device
    from grounding_dino.model_zoo import SHIPPED_MODEL, get_cfg, get_config_file, merge_options

    cfg = get_cfg()
    args.config_file = get_config_file(args.config_file or SHIPPED_MODEL)
    try:
        cfg.merge_from_file(args.config_file)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{args.config_file} is no configuration of this project: {error.args[0]}") from error
    merge_options(cfg, args.opts or [])
    expand_config(cfg)
    for text in args.dataset:
        parse_dataset_argument(text)
    cfg.DATASETS.EXTRA = [*cfg.DATASETS.EXTRA, *args.dataset]
    if args.warm_start:
        cfg.MODEL.WARM_START_ON = True
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    args.device = cfg.MODEL.DEVICE  # the one asked for
    prefer_available_device(cfg)
    cfg.freeze()
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """The configuration of a run, with logging, output folder and seed set up as Detectron2's `default_setup` does.

    The first line of the log says which Detectron2 and which kernels are in use.
    """
    from grounding_dino.engine.environment import log_environment, set_up_logging, share_cpu_cores

    from detectron2.engine import default_setup

    cfg = load_config(args)
    set_up_logging(cfg.OUTPUT_DIR)
    log_environment()
    share_cpu_cores(cfg)
    default_setup(cfg, args)
    return cfg


# --------------------------------------------------------------------------------------------------------- runs


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """What every process does; returns the metrics of the (last) evaluation."""
    from grounding_dino.engine.trainer import Trainer
    from grounding_dino.evaluation.report import results_table

    from detectron2.utils import comm

    cfg = setup(args)
    if args.eval_only:
        results = evaluate(cfg, args)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train() or {}
    if comm.is_main_process() and results:
        logger.info("results:\n%s", results_table(results, list(cfg.DATASETS.TEST)))
    return results


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> Mapping[str, Any]:
    """Evaluate MODEL.WEIGHTS; where it is empty the shipped or released file of the configuration.

    With `--resume` it is the last checkpoint of OUTPUT_DIR, if there is one.
    """
    from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
    from grounding_dino.engine.trainer import Trainer, check_test_sets
    from grounding_dino.model_zoo import find_weights

    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only, but DATASETS.TEST names no data set")
    check_test_sets(cfg)
    model = Trainer.build_model(cfg)
    checkpointer = GroundingCheckpointer(
        model, cfg.OUTPUT_DIR, ignore=cfg.MODEL.WEIGHTS_IGNORE, warm_start=cfg.MODEL.WARM_START_ON
    )
    if args.resume and checkpointer.has_checkpoint():
        checkpointer.resume_or_load("", resume=True)
    else:
        checkpointer.load(find_weights(cfg, args.config_file, args.opts or ()), checkpointables=[])
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def processes_wanted(args: argparse.Namespace, cfg: CfgNode) -> int:
    """Processes on this machine: `--num-gpus`, but one where there is no GPU and the CPU was not asked for by name.

    Raises:
        ValueError: a negative number, or more processes than GPUs.
    """
    import torch

    if args.num_gpus < 0:
        raise ValueError(f"--num-gpus is {args.num_gpus}; give the number of GPUs, or 0 to run on the CPU")
    if args.num_gpus > 1 and cfg.MODEL.DEVICE == "cpu" and args.device != "cpu":
        print(
            f"warning: --num-gpus {args.num_gpus}, but torch sees no GPU: one process trains on the CPU "
            f"(MODEL.DEVICE cpu at the end of the command starts {args.num_gpus} CPU processes)",
            file=sys.stderr,
        )
        return 1
    if cfg.MODEL.DEVICE.startswith("cuda") and args.num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs")
    return args.num_gpus


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `train_net.py`."""
    from detectron2.engine import launch

    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args)
        processes = processes_wanted(args, cfg)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if processes > 1 and cfg.MODEL.DEVICE == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else `launch` would have the CPU processes talk through NCCL
    launch(
        run,
        processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
