"""`train_net.py`: train, resume and evaluate any configuration."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from grounding_dino.cli.arguments import program
from grounding_dino.cli.errors import (
    explains_itself,
    keep_tracebacks_off_the_screen,
    log_in_full,
    lost_the_others,
)

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

SCRIPT = "train_net.py"


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments plus `--dataset`, `--warm-start` and `--debug`."""
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(
        epilog="examples:\n"
        "  train:     %(prog)s --num-gpus 8 --config-file configs/grounding_dino/swin_t_finetune_coco.yaml\n"
        "  evaluate:  %(prog)s --config-file shapes_tiny --eval-only\n"
        "  own data:  %(prog)s --config-file shapes_tiny --dataset cells=train.json:images "
        "DATASETS.TRAIN \"('cells',)\" DATASETS.TEST \"('cells',)\" OUTPUT_DIR output/cells\n"
        "  on a CPU:  %(prog)s --num-gpus 0 ... (one process), --num-gpus 2 ... MODEL.DEVICE cpu (two)\n"
    )
    parser.prog = program(SCRIPT)
    parser.description = "Train, resume or evaluate. --config-file takes a path or the short name of a packaged config."
    # Detectron2's fixed port lets two runs on one machine collide; several machines have to name theirs anyway.
    # No options are `run_id`, which names a run over its restarts, `restarted`, whether this is one, and `notes`, a
    # folder for messages of processes to the one that has started them.
    parser.set_defaults(dist_url="auto", run_id="", restarted=False, notes="")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations:image_folder",
        help="register a data set (COCO or MDETR .json, ODVG or GRIT .jsonl, .tar shards) under NAME, for "
        "DATASETS.TRAIN and DATASETS.TEST; repeatable",
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="take from MODEL.WEIGHTS what fits and list the rest, instead of an error (MODEL.WARM_START_ON True)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
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
    from grounding_dino.model_zoo import SHIPPED_MODEL, get_cfg, get_config_file, merge_options, model_weights

    cfg = get_cfg()
    name = args.config_file or SHIPPED_MODEL
    args.config_file = get_config_file(name)
    weights = model_weights(name)
    if weights:  # not said by the file, which is all that the processes get that are started next
        args.opts = ["MODEL.WEIGHTS", weights, *(args.opts or [])]
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
    from grounding_dino.data.class_count import with_class_count
    from grounding_dino.engine.environment import log_environment, set_up_logging, share_cpu_cores

    from detectron2.engine import default_setup

    cfg = load_config(args)
    set_up_logging(cfg.OUTPUT_DIR)
    log_environment()
    share_cpu_cores(cfg)
    cfg = with_class_count(cfg)  # before the configuration is written to OUTPUT_DIR
    default_setup(cfg, args)
    if not args.debug:
        keep_tracebacks_off_the_screen()
    return cfg


# --------------------------------------------------------------------------------------------------------- runs


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """What every process does; returns the metrics of the (last) evaluation."""
    from grounding_dino.engine.trainer import Trainer
    from grounding_dino.evaluation.report import report_results

    from detectron2.utils import comm

    cfg = setup(args)
    if args.eval_only:
        results = evaluate(cfg, args)
    else:
        trainer = Trainer(cfg)
        trainer.checkpointer.run_id = args.run_id
        restarted = comm.all_gather(trainer.checkpointer.belongs_to_run())[0]
        trainer.resume_or_load(resume=args.resume or restarted)
        check_equal_starts(comm.all_gather(trainer.start_iter), cfg.OUTPUT_DIR)
        if args.restarted and trainer.start_iter == 0:
            logger.warning(
                "restarted before this run's first checkpoint, so it begins again; SOLVER.CHECKPOINT_PERIOD is %d",
                trainer.cfg.SOLVER.CHECKPOINT_PERIOD,
            )
        results = trainer.train() or {}
    if comm.is_main_process() and results:
        report_results(cfg, results)
    return results


def check_equal_starts(starts: Sequence[int], output_dir: str) -> None:
    """See that all processes go on from the same iteration, given that of each.

    Raises:
        ValueError: they do not, since they look into different folders.
    """
    if len(set(starts)) > 1:
        raise ValueError(
            f"the processes would go on from the iterations {list(starts)}: OUTPUT_DIR {output_dir!r} has to be one "
            "folder that all machines see, for the first process writes the checkpoints that all of them read"
        )


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> Mapping[str, Any]:
    """Evaluate MODEL.WEIGHTS; where it is empty the shipped or released file of the configuration.

    With TEST.AUG.ENABLED semantic results are also measured with test-time augmentation ("sem_seg_TTA").
    With `--resume` it is the last checkpoint of OUTPUT_DIR, if there is one.
    """
    from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
    from grounding_dino.engine.augmented_evaluation import check_augmentation, with_augmentation
    from grounding_dino.engine.evaluations import evaluate_all
    from grounding_dino.engine.trainer import Trainer, check_test_sets
    from grounding_dino.model_zoo import complete_weights, find_weights

    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only, but DATASETS.TEST names no data set")
    check_test_sets(cfg)
    check_augmentation(cfg)
    model = Trainer.build_model(cfg)
    # strictly, also where the recipe's training is a warm start: what does not fit would be measured as noise
    checkpointer = GroundingCheckpointer(model, cfg.OUTPUT_DIR, ignore=cfg.MODEL.WEIGHTS_IGNORE)
    if args.resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
        rest = checkpointer.resume_or_load("", resume=True)
    else:
        weights = find_weights(cfg, args.config_file, args.opts or ())
        rest = checkpointer.load(weights, checkpointables=[])
    averaged = complete_weights(cfg, model, rest)
    cfg = cfg.clone()
    cfg.defrost()
    # which the protocol of an evaluation names
    cfg.MODEL.WEIGHTS = f"{weights}, averaged" if averaged else weights
    cfg.freeze()
    results = evaluate_all(cfg, model, Trainer.test)
    if cfg.TEST.AUG.ENABLED:
        results = with_augmentation(cfg, model, Trainer.test, results)
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


def check_arguments_of_worker(args: argparse.Namespace) -> None:
    """See that the command does not ask for processes where torchrun or submitit has already started them.

    Raises:
        ValueError: it does.
    """
    if args.num_gpus > 1 or args.num_machines > 1:
        raise ValueError(
            "torchrun (or submitit) has started the processes of this run: leave out --num-gpus and --num-machines, "
            "and give their numbers to it (torchrun --nproc-per-node 8 --nnodes 2)"
        )


def run_and_explain(args: argparse.Namespace) -> Mapping[str, Any]:
    """As :func:`run`; an error that says in words what is wrong ends the process with its message and exit code 1.

    With `--debug`, and for all other errors, it is raised as it is. The log file has the traceback in any case.
    """
    try:
        return run(args)
    except Exception as error:
        lost = lost_the_others(error)
        if args.debug or not (lost or explains_itself(error)):
            raise
        message = str(error)
        if lost:
            message = "the connection to the other processes broke off; the first error of another one says why"
        log_in_full(error, message)
        leave_with(message, args, lost)


def leave_with(message: str, args: argparse.Namespace, lost: bool) -> NoReturn:
    """Exit with code 1; the message is printed, or left as a note for the process that has started this one."""
    from detectron2.utils import comm

    if args.notes:
        (Path(args.notes) / f"{'lost' if lost else 'error'}_{comm.get_rank()}").write_text(message, encoding="utf-8")
        sys.exit(1)
    process = f"process {comm.get_rank()}: " if comm.get_world_size() > 1 else ""
    sys.exit(f"{program(SCRIPT)}: error: {process}{message}\n(--debug shows where)")


def launch_and_explain(args: argparse.Namespace, processes: int) -> None:
    """Detectron2's `launch` of :func:`run_and_explain`; what a process could say in words is printed once."""
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    with tempfile.TemporaryDirectory(prefix="train_net_") as folder:
        if processes * args.num_machines > 1:
            args.notes = folder
        try:
            launch(
                run_and_explain,
                processes,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except (ProcessExitedException, ProcessRaisedException):
            notes = sorted(Path(folder).iterdir())  # an "error" comes before a "lost" connection
            if not notes:
                raise
            args.notes = ""
            sys.exit(f"{program(SCRIPT)}: error: {notes[0].read_text(encoding='utf-8')}\n(--debug shows where)")


def main(argv: Sequence[str] | None = None, run_id: str = "", restarted: bool = False) -> None:
    """Entry point of `train_net.py`, in each process where torchrun or submitit starts several.

    `run_id` names a run over all its restarts, of which this is one if `restarted`; torchrun says both itself.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    from grounding_dino.engine.launchers import run_worker, worker_of_environment

    try:
        worker = worker_of_environment()
        cfg = load_config(args)
        if worker is None:
            processes = processes_wanted(args, cfg)
        else:
            check_arguments_of_worker(args)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    args.run_id = run_id
    args.restarted = restarted or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if worker is not None:
        args.run_id = args.run_id or worker.run_id
        run_worker(run_and_explain, worker, cfg.MODEL.DEVICE, (args,))
        return
    if processes > 1 and cfg.MODEL.DEVICE == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else `launch` would have the CPU processes talk through NCCL
    launch_and_explain(args, processes)
