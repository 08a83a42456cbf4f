"""`tools/slurm_train.py`: its arguments, what SLURM is asked for, and real jobs that submitit runs and requeues."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli import slurm_train
from grounding_dino.cli import train as train_module
from grounding_dino.cli.slurm_train import TrainingJob, build_parser, main, seconds, submit
from grounding_dino.cli.train import build_parser as train_parser
from grounding_dino.cli.train import run
from grounding_dino.engine.launchers import worker_of_environment

import pytest
import torch

ROOT = Path(__file__).parents[2]
TWO = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4", "DATASETS.TEST", "()")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`programs(name, text)`: a shell script of that name; no other program of SLURM is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return write


# --------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("24:00:00", 86400),
        ("2-12", 60 * 3600),
        ("1-2:30", (26 * 60 + 30) * 60),
        ("1-0:0:5", 86405),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("own", "train", "message"),
    [
        (("--time", "soon"), (), "'soon' is no time; write minutes, H:M:S"),
        (("--time", "0:0"), (), "'0:0' is no time to train in"),
        (("--nodes", "0"), (), "0 is not a positive number"),
        (("--gpus-per-node", "-1"), (), "'-1' is not a whole number; give 0 or more"),
        (("--mem", "64G"), (), "'64G' is no number of gigabytes"),
        (("--sbatch", "exclusive"), (), "'exclusive' is not of the form KEY=VALUE"),
        (("--local", "--debug"), (), "--debug: not allowed with argument --local"),
        (("--config-file", "shapes_tiny"), (), "there is no option --config-file; arguments of train_net.py stand"),
        (("--local", "--nodes", "2"), (), "--local and --debug train on this machine alone, but --nodes is 2"),
        (("--local", "--time", "2"), (), "--signal-delay is 120 s, but --time is over after 120 s"),
        ((), ("--num-gpus", "8"), "leave out --num-gpus and --num-machines, and give --gpus-per-node and --nodes"),
        ((), ("SOLVER.MAX_ITERS", "3"), "there is no configuration key 'SOLVER.MAX_ITERS'; did you mean"),
        ((), ("--config-file", "shape_tiny"), "there is no configuration 'shape_tiny'"),
        ((), (), "this machine has no sbatch, so it is none of a SLURM cluster: .* --local"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_it_is_queued(
    programs: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    own: tuple[str, ...],
    train: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*own, "--", *train])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error, error


def test_without_submitit_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit):
        main(["--"])
    assert "the package submitit is missing; pip install submitit" in capsys.readouterr().err


def test_the_help_names_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for option in ("partition", "nodes", "gpus-per-node", "cpus-per-process", "mem", "time", "requeues", "account"):
        assert f"--{option} " in text
    for option in ("qos", "constraint", "comment", "job-name", "log-folder", "setup", "sbatch", "signal-delay"):
        assert f"--{option} " in text
    assert "-- ARGUMENTS OF train_net.py" in text


def test_slurm_is_asked_for_what_the_arguments_say(
    programs: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs("srun", "")
    programs("sbatch", "echo Submitted batch job 4711")
    job = ["--partition", "gpu", "--nodes", "2", "--gpus-per-node", "8", "--cpus-per-process", "6", "--mem", "400"]
    job += ["--time", "1-0:0:1", "--account", "vision", "--qos", "long", "--constraint", "a100", "--comment", "a b"]
    job += ["--job-name", "coco", "--sbatch", "exclude=node7", "--setup", "module load cuda"]
    output = tmp_path / "out"
    assert main([*job, "--", "--config-file", "shapes_tiny", "OUTPUT_DIR", str(output)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "job 4711: 2 x 8 processes",
        f"logs: {output}/slurm/4711_*_log.out",
        "to end it: scancel 4711",
    ]
    lines = (output / "slurm" / "4711_submission.sh").read_text().splitlines()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", "\n".join(lines), re.M))
    expected = {"partition": "gpu", "nodes": "2", "gpus-per-node": "8", "ntasks-per-node": "8", "cpus-per-task": "6"}
    expected |= {"mem": "409600M", "time": "1441", "account": "vision", "qos": "long", "constraint": "a100"}
    expected |= {"comment": "'a b'", "job-name": "coco", "exclude": "node7", "requeue": "", "signal": "USR2@120"}
    assert {key: options.get(key) for key in expected} == expected
    assert "module load cuda" in lines
    assert shown.err == ""


def test_a_refusal_of_sbatch_is_passed_on(
    programs: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs("srun", "")
    programs("sbatch", "echo 'invalid partition specified: gup' >&2; exit 1")
    with pytest.raises(SystemExit):
        main(["--partition", "gup", "--", "OUTPUT_DIR", str(tmp_path / "out")])
    assert "sbatch has refused the job: invalid partition specified: gup" in capsys.readouterr().err


def test_a_folder_with_checkpoints_of_another_run_is_pointed_out(
    programs: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs("srun", "")
    programs("sbatch", "echo Submitted batch job 4711")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert main(["--", "OUTPUT_DIR", str(tmp_path)]) == 0
    assert f"warning: {tmp_path} has checkpoints of an earlier run" in capsys.readouterr().err
    assert main(["--", "--resume", "OUTPUT_DIR", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------------------------------------- jobs


IN_A_CHILD = """
import os, signal
from grounding_dino.cli.slurm_train import let_children_ignore_the_signal

signal.signal(signal.SIGUSR2, lambda *_: os._exit(3))
let_children_ignore_the_signal()
child = os.fork()
os.kill(os.getpid() if child == 0 else child, signal.SIGUSR2)
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os.kill(os.getpid(), signal.SIGUSR2)
"""


def test_the_signal_of_the_last_minutes_is_heard_by_the_process_alone() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", IN_A_CHILD], env=environment).returncode == 3


def test_a_task_of_slurm_is_a_worker_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    of_slurm = {"JOB_ID": "4711", "NTASKS": "16", "JOB_NUM_NODES": "2", "NODEID": "1", "JOB_NODELIST": "gpu[3-4]"}
    of_slurm |= {"PROCID": "9", "LOCALID": "1", "RESTART_COUNT": "1"}
    for name, value in of_slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")  # as before afterwards
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(slurm_train, "let_children_ignore_the_signal", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    called: list[Any] = []
    monkeypatch.setattr(train_module, "main", lambda *args, **kwargs: called.append((args, kwargs)))
    TrainingJob(("--eval-only",), "name")()
    assert called == [((["--eval-only"],), {"run_id": "name", "restarted": True})]
    worker = worker_of_environment()
    assert worker is not None
    assert (worker.rank, worker.local_rank, worker.world_size, worker.local_world_size) == (9, 1, 16, 8)
    assert os.environ["MASTER_ADDR"] == "gpu3"


def test_a_requeued_job_is_the_same_run() -> None:
    job = TrainingJob(("--config-file", "x"), "name")
    again = job.checkpoint().function
    assert (again.arguments, again.run_id, again.requeues) == (job.arguments, job.run_id, 1)


@pytest.fixture
def local_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`local_job(arguments, *options)`: submitit's job of two processes on this machine."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(arguments: list[str], *options: str) -> Any:
        args = build_parser().parse_args(["--local", "--gpus-per-node", "0", "--processes-per-node", "2", *options])
        return submit(args, arguments, str(tmp_path / "logs"))

    return start


def logs_of(job: Any) -> str:
    return "\n".join(path.read_text() for path in sorted(job.paths.folder.glob("*_log.out")))


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.slow
def test_a_job_of_two_processes_trains(
    command: Callable[..., list[str]], local_job: Callable[..., Any], tmp_path: Path
) -> None:
    job = local_job(command(opts=(*TWO, "SOLVER.MAX_ITER", "3")))
    try:
        assert job.results() == [None, None], logs_of(job)
    finally:
        job.cancel()
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert (tmp_path / "out" / "log.txt.rank1").is_file(), "the second process belongs to the same run"
    assert (tmp_path / "logs" / f"{job.job_id}_1_log.out").is_file()


WAITS = """
import time
from grounding_dino.cli.slurm_train import TrainingJob
from grounding_dino.engine.trainer import Trainer
from detectron2.engine import HookBase

class Wait(HookBase):
    def before_step(self):
        if self.trainer.iter == 7:
            time.sleep(600)

class WaitingJob(TrainingJob):
    def __call__(self):
        if self.requeues == 0:
            original = Trainer.build_hooks
            Trainer.build_hooks = lambda trainer: [*original(trainer), Wait()]
        super().__call__()
"""


@pytest.mark.slow
def test_a_job_out_of_time_is_requeued_and_goes_on_without_a_lost_or_repeated_step(
    command: Callable[..., list[str]],
    local_job: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opts = (*TWO, "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER", "10")
    # what another run has left in the folder is not gone on from
    run(train_parser().parse_args(command(opts=("DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"))))
    (tmp_path / "out" / "log.txt").write_text("")
    (tmp_path / "waiting_job.py").write_text(WAITS)
    monkeypatch.syspath_prepend(tmp_path)
    from waiting_job import WaitingJob  # type: ignore[import-not-found]

    monkeypatch.setattr(slurm_train, "TrainingJob", WaitingJob)
    job = local_job(command(opts=opts), "--time", "1:00", "--signal-delay", "15")
    try:
        assert job.results() == [None, None], logs_of(job)
    finally:
        job.cancel()
    assert "this job is timed-out" in logs_of(job)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert re.findall(r"goes on with iteration (\d+) of 10", log) == ["6"], log
    assert re.findall(r"starting training from iteration (\d+)", log, re.I) == ["0", "6"]
    assert "so it begins again" not in log

    monkeypatch.setattr(slurm_train, "TrainingJob", TrainingJob)
    whole = local_job(command(opts=(*opts, "OUTPUT_DIR", str(tmp_path / "whole"))))
    assert whole.results() == [None, None], logs_of(whole)
    left, right = learned(tmp_path / "out"), learned(tmp_path / "whole")
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.slow
def test_a_failing_run_ends_its_job_with_the_sentence_and_is_not_requeued(
    command: Callable[..., list[str]], local_job: Callable[..., Any]
) -> None:
    job = local_job(command(opts=(*TWO, "MODEL.WEIGHTS", "gone.pth")))
    job.wait()
    logs = logs_of(job)
    assert "train_net.py: error: process 0: " in logs and "gone.pth" in logs and "Traceback" not in logs
    assert logs.count("Starting with JobEnvironment") == 2
    assert [task.paths.result_pickle.exists() for task in (job.task(0), job.task(1))] == [False, False]


def restarted_run(arguments: list[str]) -> argparse.Namespace:
    args = train_parser().parse_args(arguments)
    args.restarted, args.run_id = True, "name"
    return args


def test_a_restart_before_the_first_checkpoint_is_said(command: Callable[..., list[str]], tmp_path: Path) -> None:
    arguments = command(opts=("DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"))
    run(restarted_run(arguments))
    log = tmp_path / "out" / "log.txt"
    assert "restarted before this run's first checkpoint, so it begins again" in log.read_text()
    log.write_text("")
    run(restarted_run(arguments))
    assert "begins again" not in log.read_text()
    assert "all 1 iterations are done" in log.read_text(), "a finished run is not repeated"
