"""`train_net.py` on several processes: started by itself or by torchrun; killed, restarted, evaluating, failing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.cli.train import build_parser, load_config, run
from grounding_dino.engine.trainer import Trainer

import pytest
import torch

ROOT = Path(__file__).parents[2]


def train_net(
    arguments: list[str], script: Path = ROOT / "train_net.py", torchrun: Sequence[str] = ()
) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def weights_and_optimizer(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    content = torch.load(file, weights_only=True)
    return content["model"], content["trainer"]["_trainer"]["optimizer"]["state"]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(command: Callable[..., list[str]], tmp_path: Path) -> None:
    opts = ("DATASETS.TEST", "()", "SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "10", "SEED", "-1")
    killed = train_net(command(opts=opts))
    checkpoint = tmp_path / "out" / "model_0000009.pth"
    while not checkpoint.is_file() and killed.poll() is None:
        time.sleep(0.005)
    time.sleep(0.1)  # a few iterations later, or while the next checkpoint is written
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert checkpoint.is_file() and not (tmp_path / "out" / "model_final.pth").exists()

    resumed = train_net(command("--resume", opts=(*opts, "DATALOADER.NUM_WORKERS", "2")))
    assert_finished(resumed)
    seed = torch.load(checkpoint, weights_only=True)["trainer"]["seed"]
    whole = train_net(command(opts=(*opts, "SEED", str(seed), "OUTPUT_DIR", str(tmp_path / "whole"))))
    assert_finished(whole)
    left, right = (weights_and_optimizer(tmp_path / name / "model_final.pth") for name in ("out", "whole"))
    assert all(torch.equal(tensor, right[0][name]) for name, tensor in left[0].items())
    for index, state in left[1].items():
        assert all(torch.equal(value, right[1][index][key]) for key, value in state.items())


def assert_finished(process: subprocess.Popen[str]) -> str:
    output = output_of(process)
    assert process.returncode == 0, output
    return output


def output_of(process: subprocess.Popen[str]) -> str:
    """What it prints; where it hangs, nothing of it is left behind."""
    try:
        return process.communicate(timeout=400)[0]
    except BaseException:
        process.terminate()  # torchrun ends its processes, too
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise


ENTRY_POINT = """
import sys
from grounding_dino.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""  # as pip writes it into bin/, without an ending
TWO = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(command: Callable[..., list[str]], tmp_path: Path) -> None:
    # without random numbers in the step: denoising would draw other ones in each process
    opts = (*TWO, "MODEL.DENOISING.ENABLED_ON", "False", "INPUT.RANDOM_FLIP", "none", "SOLVER.MAX_ITER", "3")
    opts = (*opts, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0")
    output = assert_finished(train_net(command("--num-gpus", "2", opts=opts)))
    assert "boxes bbox" in output.split("results:\n")[1], "both processes' results are gathered"
    alone = build_parser().parse_args(command(opts=(*opts, "OUTPUT_DIR", str(tmp_path / "alone"))))
    initial = Trainer(load_config(alone)).model.state_dict()
    run(alone)
    learned = []
    for name in ("out", "alone"):
        weights = weights_and_optimizer(tmp_path / name / "model_final.pth")[0]
        learned.append(torch.cat([(tensor - initial[name]).flatten() for name, tensor in weights.items()]))
    assert float((learned[0] - learned[1]).norm()) < 1e-2 * float(learned[1].norm())


@pytest.mark.slow
def test_two_processes_resume_and_meet_pictures_without_objects(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    opts = (*TWO, "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", "4")
    assert_finished(train_net(command("--num-gpus", "2", opts=(*opts, "SOLVER.MAX_ITER", "8"))))
    whole = weights_and_optimizer(tmp_path / "out" / "model_final.pth")[0]
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000003.pth")
    (tmp_path / "grounding-dino").write_text(ENTRY_POINT)  # whose processes have to import it, too
    arguments = ["train", *command("--num-gpus", "2", "--resume", opts=(*opts, "SOLVER.MAX_ITER", "8"))]
    again = assert_finished(train_net(arguments, script=tmp_path / "grounding-dino"))
    assert "this run goes on with iteration 4 of 8" in again
    resumed = weights_and_optimizer(tmp_path / "out" / "model_final.pth")[0]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


SPOILT = """
import grounding_dino
from grounding_dino.cli import train
from grounding_dino.data.datasets import register_refexp
from grounding_dino.engine.trainer import Trainer
from detectron2.engine import HookBase
from detectron2.utils import comm

class Spoil(HookBase):
    def before_step(self):
        if comm.get_rank() == 1 and self.trainer.iter == 1:
            self.trainer.model.module.criterion.weights["giou"] = float("nan")

def build_hooks(trainer, original=Trainer.build_hooks):
    return [*original(trainer), Spoil()]

Trainer.build_hooks = build_hooks
if __name__ == "__main__":
    train.main()
"""


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_ends_all_in_one_sentence(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    process = train_net(command("--num-gpus", "2", opts=TWO), script=script)
    output = output_of(process)
    assert process.returncode == 1
    end = output.rstrip().splitlines()[-2]
    assert re.match("train_net.py: error: (loss_giou = nan|the gradient of .* is not finite) on pictures", end), output
    assert "Traceback" not in output
    log = (tmp_path / "out" / "log.txt.rank1").read_text()
    assert "Traceback" in log and "NonFiniteError" in log


KILLED = """
import os, signal
import grounding_dino
from grounding_dino.cli import train
from grounding_dino.engine.trainer import Trainer
from detectron2.engine import HookBase

class Kill(HookBase):
    def before_step(self):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.environ["RANK"] == "1" and self.trainer.iter == 7:
            os.kill(os.getpid(), signal.SIGKILL)

def build_hooks(trainer, original=Trainer.build_hooks):
    return [*original(trainer), Kill()]

Trainer.build_hooks = build_hooks
train.main()
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_goes_on_without_a_lost_or_repeated_step(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    opts = (*TWO, "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER", "10")
    # what another run has left in the folder is not gone on from
    run(build_parser().parse_args(command(opts=("DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"))))
    (tmp_path / "out" / "log.txt").write_text("")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    torchrun = ("--nproc-per-node", "2", "--max-restarts", "1")
    output = assert_finished(train_net(command(opts=(*opts, "SEED", "-1")), script=script, torchrun=torchrun))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert re.findall(r"goes on with iteration (\d+) of 10", log) == ["6"], output
    assert re.findall(r"starting training from iteration (\d+)", log, re.I) == ["0", "6"]

    seed = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["trainer"]["seed"]
    whole = (*opts, "SEED", str(seed), "OUTPUT_DIR", str(tmp_path / "whole"))
    assert_finished(train_net(command("--num-gpus", "2", opts=whole)))
    left, right = (weights_and_optimizer(tmp_path / name / "model_final.pth") for name in ("out", "whole"))
    assert all(torch.equal(tensor, right[0][name]) for name, tensor in left[0].items())
    assert left[1].keys() == right[1].keys()
    for index, state in left[1].items():
        assert all(torch.equal(value, right[1][index][key]) for key, value in state.items())


@pytest.mark.slow
def test_evaluation_on_two_processes_equals_that_on_one(command: Callable[..., list[str]], tmp_path: Path) -> None:
    run(build_parser().parse_args(command(opts=("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"))))
    weights = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    alone = run(build_parser().parse_args(command("--eval-only", opts=(*weights, "OUTPUT_DIR", str(tmp_path / "one")))))
    two = command("--eval-only", opts=(*weights, "OUTPUT_DIR", str(tmp_path / "two"), "DATALOADER.NUM_WORKERS", "1"))
    assert_finished(train_net(two, torchrun=("--nproc-per-node", "2")))
    found = [detections_by_picture(tmp_path / name) for name in ("one", "two")]
    assert found[0] == found[1] and set(found[0]) == {7, 14, 21, 28, 35}  # five pictures, on processes with 3 and 2
    summary = json.loads((tmp_path / "two" / "inference" / "summary.json").read_text())
    assert summary["data sets"]["boxes"]["bbox"]["AP"] == alone["bbox"]["AP"]


def detections_by_picture(folder: Path) -> dict[int, list[Any]]:
    (file,) = folder.rglob("coco_instances_results.json")
    found: dict[int, list[Any]] = {}
    for detection in json.loads(file.read_text()):
        found.setdefault(detection["image_id"], []).append([detection["category_id"], detection["score"]])
    return found
