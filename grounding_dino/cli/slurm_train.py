"""`tools/slurm_train.py`: a run of `train_net.py` as a job of a SLURM cluster, through submitit."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from grounding_dino.cli.arguments import count, program

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


@dataclass(frozen=True)
class TrainingJob:
    """What each process of the job runs; submitit writes it to a file, and calls it again after a requeue.

    Attributes:
        arguments: of `train_net.py`.
        run_id: names the run over all its restarts, so that they go on from its checkpoints and no other's.
        requeues: how often submitit has requeued it so far.
    """

    arguments: tuple[str, ...]
    run_id: str
    requeues: int = 0

    def __call__(self) -> None:
        """Train, as one of the job's processes."""
        from grounding_dino.cli import train

        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        # All of a machine's GPUs stay visible: a process takes the one of its number.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        let_children_ignore_the_signal()
        if JobEnvironment().cluster == "slurm":
            signal.signal(signal.SIGTERM, _wait_for_the_end)
        # The second is SLURM's own count, of requeues after a node has failed, too.
        restarted = self.requeues > 0 or int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
        train.main(list(self.arguments), run_id=self.run_id, restarted=restarted)

    def checkpoint(self) -> Any:
        """What submitit requeues when the time is up: the same run, for checkpoints are written all the time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, requeues=self.requeues + 1))


def let_children_ignore_the_signal() -> None:
    """Leave the warning that time is up to the process itself.

    SLURM sends it to all processes of a job, and forked ones, which load data, have inherited submitit's handler: each
    of them would requeue the job.
    """
    from submitit import JobEnvironment

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    os.register_at_fork(after_in_child=lambda: signal.signal(number, signal.SIG_IGN))


def _wait_for_the_end(signum: int, frame: Any) -> NoReturn:
    """What SIGTERM comes to in a job that SLURM requeues, preempts or cancels, a while before it kills all processes.

    The signal ends the processes that load data, and training on would fail for want of them, which is no failure of
    the run. Signals, such as the one to requeue, are still heard.
    """
    print("SLURM is about to end this job", flush=True)
    while True:
        with contextlib.suppress(RuntimeError):  # of torch, about processes that have ended
            time.sleep(1)


# ----------------------------------------------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    """The command's own arguments; those of `train_net.py` stand behind `--`."""
    parser = argparse.ArgumentParser(
        prog=program("slurm_train.py"),
        usage="%(prog)s [options] -- ARGUMENTS OF train_net.py",
        description="Train on a SLURM cluster (pip install submitit). When its time is up the job requeues itself and "
        "goes on from the last checkpoint; so it does after it was preempted or a node has failed.",
        epilog="example: %(prog)s --partition gpu --nodes 2 --gpus-per-node 8 --time 24:00:00 -- "
        "--config-file configs/grounding_dino/swin_t_finetune_coco.yaml OUTPUT_DIR output/coco",
        allow_abbrev=False,
    )
    job = parser.add_argument_group("the job")
    job.add_argument("--partition", help="where to queue it; by default the cluster's own choice")
    job.add_argument("--nodes", type=count, default=1, metavar="N", help="machines (default 1)")
    job.add_argument("--gpus-per-node", type=_from_zero, default=1, metavar="N", help="default 1; 0 is the CPU")
    job.add_argument(
        "--processes-per-node", type=count, metavar="N", help="by default as many as GPUs, one where there are none"
    )
    job.add_argument(
        "--cpus-per-process", type=count, default=8, metavar="N", help="cores, also for loading data (default 8)"
    )
    job.add_argument("--mem", type=_gigabytes, metavar="GB", help="memory of a machine; by default the cluster's")
    job.add_argument(
        "--time",
        type=seconds,
        default="24:00:00",
        help="after which it is requeued, in SLURM's forms: minutes, hours:minutes:seconds, days-hours, ... "
        "(default 24:00:00)",
    )
    job.add_argument(
        "--requeues", type=_from_zero, default=100, metavar="N", help="at most so many times out of time (default 100)"
    )
    job.add_argument(
        "--signal-delay", type=count, default=120, metavar="S", help="seconds before the end to requeue (default 120)"
    )
    for name in ("account", "qos", "constraint", "comment"):
        job.add_argument(f"--{name}", help="as sbatch's")
    job.add_argument("--job-name", default="train_net", metavar="NAME", help="default train_net")
    job.add_argument(
        "--sbatch",
        action="append",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="any other option of sbatch, such as exclude=node7; repeatable",
    )
    job.add_argument(
        "--setup", action="append", default=[], metavar="COMMAND", help="shell command to run before; repeatable"
    )
    parser.add_argument("--log-folder", metavar="FOLDER", help="one that all machines see (default OUTPUT_DIR/slurm)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run on this machine, in the background, without SLURM")
    where.add_argument("--debug", action="store_true", help="run as one process, here and now, without SLURM")
    return parser


def seconds(text: str) -> int:
    """Of a time in any of SLURM's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write minutes, H:M:S, D-H or D-H:M:S, such as 24:00:00")
    numbers = [int(number) for number in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, rest = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, rest = numbers if len(numbers) == 3 else (0, *numbers, 0)[:3]
    total = ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + rest
    if total < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to train in")
    return total


def _from_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give 0 or more")
    return int(text)


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of gigabytes; write a number such as 64")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, _, value = text.removeprefix("--").partition("=")
    if not key or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE, such as exclude=node7")
    return key, value


# -------------------------------------------------------------------------------------------------------------- job


def check_training(arguments: Sequence[str]) -> CfgNode:
    """The configuration of the run: what is wrong with it is said before the job waits in the queue.

    Raises:
        FileNotFoundError, ValueError: as `train_net.py` says it.
    """
    from grounding_dino.cli import train

    args = train.build_parser().parse_args(arguments)
    if args.num_gpus > 1 or args.num_machines > 1:
        raise ValueError(
            "leave out --num-gpus and --num-machines, and give --gpus-per-node and --nodes before the -- instead"
        )
    return train.load_config(args)


def submit(args: argparse.Namespace, arguments: Sequence[str], log_folder: str) -> Any:
    """Submit `train_net.py` with `arguments`; submitit's job.

    Raises:
        ValueError: there is no submitit, no SLURM, or it refuses the job.
    """
    try:
        import submitit
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError
    except ImportError:
        raise ValueError("the package submitit is missing; pip install submitit") from None
    if args.signal_delay >= args.time:
        raise ValueError(f"--signal-delay is {args.signal_delay} s, but --time is over after {args.time} s")
    if args.local or args.debug:
        if args.nodes > 1:
            raise ValueError(f"--local and --debug train on this machine alone, but --nodes is {args.nodes}")
        executor = _here(args, log_folder)
    else:
        for command in ("sbatch", "srun"):
            if shutil.which(command) is None:
                raise ValueError(
                    f"this machine has no {command}, so it is none of a SLURM cluster: submit from one that is, or "
                    "give --local to train on this machine"
                )
        executor = submitit.SlurmExecutor(log_folder, max_num_timeout=args.requeues)
        executor.update_parameters(**_slurm_parameters(args))
    try:
        return executor.submit(TrainingJob(tuple(arguments), run_id=uuid.uuid4().hex))
    except (FailedSubmissionError, UncompletedJobError) as error:
        raise ValueError(f"sbatch has refused the job: {str(error).strip()}") from error


def _here(args: argparse.Namespace, log_folder: str) -> Any:
    """submitit's executor on this machine."""
    import submitit

    if args.debug:
        return submitit.DebugExecutor(log_folder)
    executor = submitit.LocalExecutor(log_folder, max_num_timeout=args.requeues)
    executor.update_parameters(
        tasks_per_node=processes_per_node(args),
        gpus_per_node=args.gpus_per_node,
        timeout_min=args.time / 60,
        signal_delay_s=args.signal_delay,
        stderr_to_stdout=True,
        setup=args.setup,
    )
    return executor


def _slurm_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """In submitit's names; what is None is left to the cluster."""
    parameters = {name: getattr(args, name) for name in ("partition", "account", "qos", "constraint", "comment")}
    parameters |= {
        "job_name": args.job_name,
        "nodes": args.nodes,
        "ntasks_per_node": processes_per_node(args),
        "cpus_per_task": args.cpus_per_process,
        "gpus_per_node": args.gpus_per_node or None,
        "mem": None if args.mem is None else f"{math.ceil(args.mem * 1024)}M",
        "time": math.ceil(args.time / 60),  # minutes
        "signal_delay_s": args.signal_delay,
        "stderr_to_stdout": True,
        "setup": args.setup or None,
        # without it clusters may refuse to requeue
        "additional_parameters": {"requeue": True, **dict(args.sbatch)},
    }
    return {name: value for name, value in parameters.items() if value is not None}


def processes_per_node(args: argparse.Namespace) -> int:
    """One for each GPU, unless the arguments ask for another number."""
    return int(args.processes_per_node or args.gpus_per_node or 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, rest = arguments[:place], arguments[place + 1 :]
    parser = build_parser()
    args, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(f"there is no option {unknown[0]}; arguments of train_net.py stand behind --")
    try:
        cfg = check_training(rest)
        folder = args.log_folder or str(Path(cfg.OUTPUT_DIR) / "slurm")
        job = submit(args, rest, folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    _report(args, job)
    _warn_of_other_runs(cfg.OUTPUT_DIR, rest)
    if args.debug:
        job.results()
    return 0


def _report(args: argparse.Namespace, job: Any) -> None:
    nodes, processes = args.nodes, processes_per_node(args)
    size = "1 process" if args.debug or nodes * processes == 1 else f"{nodes} x {processes} processes"
    print(f"job {job.job_id}: {size}")
    logs = job.paths.stdout
    print(f"logs: {logs.parent / logs.name.replace('_0_log', '_*_log')}")
    if not args.debug:
        print(f"to end it: {'kill -INT' if args.local else 'scancel'} {job.job_id}", flush=True)


def _warn_of_other_runs(output_dir: str, arguments: Sequence[str]) -> None:
    if (
        "--resume" not in arguments
        and "--eval-only" not in arguments
        and (Path(output_dir) / "last_checkpoint").exists()
    ):
        print(
            f"warning: {output_dir} has checkpoints of an earlier run, and this one starts anew; to go on with the "
            "earlier one, end this job and put --resume behind the --",
            file=sys.stderr,
        )
