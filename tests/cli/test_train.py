"""`train_net.py`: arguments, data sets from the command line, evaluation, and runs of several processes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.cli import train as train_module
from grounding_dino.cli.train import build_parser, load_config, main, processes_wanted, run
from grounding_dino.data.datasets import register_refexp
from grounding_dino.engine.trainer import Trainer

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

ROOT = Path(__file__).parents[2]
TOP = ("AP", "AP50")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Loggers and data sets are put back: a run sets up and registers some. One thread is enough for tiny models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loggers = [logging.getLogger(name) for name in ("grounding_dino", "detectron2", "fvcore")]
    before = [(log, log.handlers[:], log.propagate, log.level) for log in loggers]
    names = set(DatasetCatalog)
    yield
    torch.set_num_threads(threads)
    for log, handlers, propagate, level in before:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)
    for name in set(DatasetCatalog) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def coco(tmp_path: Path) -> str:
    """`annotations.json:folder` of five pictures, one of them empty; category ids have gaps and are in no order."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 6):
        pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
        pixels[10:30, 10 * number : 10 * number + 20] = (250, 20, 20) if number % 2 else (20, 20, 250)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": 7 * number, "file_name": f"{number}.png", "height": 48, "width": 64})
        if number == 5:
            continue
        annotation = {"id": number, "image_id": 7 * number, "category_id": 91 if number % 2 else 4}
        annotations.append({**annotation, "bbox": [10 * number, 10, 20, 20], "area": 400, "iscrowd": 0})
    categories = [{"id": 91, "name": "red box"}, {"id": 4, "name": "blue box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return f"{tmp_path / 'boxes.json'}:{folder}"


@pytest.fixture
def command(tiny_cfg: CfgNode, coco: str, tmp_path: Path) -> Callable[..., list[str]]:
    """`command(*flags, opts=())`: the arguments of a tiny run on the data set `boxes`."""
    cfg = tiny_cfg.clone()
    cfg.merge_from_list(["DATASETS.TRAIN", ("boxes",), "DATASETS.TEST", ("boxes",), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (80,), "INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TRAIN", 120])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SEED", 1, "MODEL.DEVICE", "cuda"])
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.RELEASE.URL", ""])
    file = tmp_path / "tiny.yaml"
    file.write_text(cfg.dump())

    def build(*flags: str, opts: tuple[str, ...] = ()) -> list[str]:
        return ["--config-file", str(file), "--dataset", f"boxes={coco}", *flags, *opts]

    return build


def log_of(tmp_path: Path) -> str:
    return (tmp_path / "out" / "log.txt").read_text()


# --------------------------------------------------------------------------------------------------------- arguments


def parsed(command: list[str]) -> Any:
    return build_parser().parse_args(command)


@pytest.mark.parametrize(
    ("flags", "opts", "message"),
    [
        (
            (),
            ("SOLVER.MAX_ITERS", "3"),
            "there is no configuration key 'SOLVER.MAX_ITERS'; did you mean SOLVER.MAX_ITER",
        ),
        ((), ("FOO", "3"), "there is no configuration key 'FOO'"),
        ((), ("SOLVER.MAX_ITER",), "'SOLVER.MAX_ITER' are not pairs of KEY VALUE"),
        ((), ("SOLVER.MAX_ITER", "3", "--resume"), "--resume stands behind the first KEY VALUE pair"),
        ((), ("SOLVER.MAX_ITER", "soon"), "SOLVER.MAX_ITER cannot be 'soon'"),
        (("--dataset", "cells"), (), "the data set argument 'cells' names no data set"),
        (("--num-gpus", "-1"), (), "--num-gpus is -1; give the number of GPUs"),
        (("--config-file", "shape_tiny"), (), "there is no configuration 'shape_tiny'.*shapes_tiny"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    opts: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(command(*flags, opts=opts))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_a_config_file_with_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("MODEL: {SWINN: 3}\n")
    with pytest.raises(SystemExit):
        main(["--config-file", str(file)])
    error = capsys.readouterr().err
    assert "own.yaml is no configuration of this project" in error and "SWINN" in error


def test_devices_and_numbers_of_processes(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*flags: str, opts: tuple[str, ...] = ()) -> tuple[int, str]:
        args = parsed(command(*flags, opts=opts))
        cfg = load_config(args)
        return processes_wanted(args, cfg), cfg.MODEL.DEVICE

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan("--num-gpus", "8") == (1, "cpu")
    assert "--num-gpus 8, but torch sees no GPU: one process trains on the CPU" in capsys.readouterr().err
    assert plan("--num-gpus", "2", opts=("MODEL.DEVICE", "cpu")) == (2, "cpu")
    assert plan("--num-gpus", "0") == (0, "cpu")
    assert plan() == (1, "cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert plan("--num-gpus", "4") == (4, "cuda")
    assert plan("--num-gpus", "0") == (0, "cpu")
    with pytest.raises(ValueError, match="--num-gpus is 8, but this machine has 4 GPUs"):
        plan("--num-gpus", "8")


def test_the_shipped_configuration_is_the_default() -> None:
    args = parsed([])
    assert load_config(args).MODEL.META_ARCHITECTURE == "GeneralizedDINO"
    assert Path(args.config_file).stem == "shapes_tiny"


def test_a_warm_start_is_asked_for_by_a_flag_or_a_key(command: Callable[..., list[str]]) -> None:
    for arguments, expected in (((), False), (("--warm-start",), True), (("MODEL.WARM_START_ON", "True"), True)):
        assert load_config(parsed([*command(), *arguments])).MODEL.WARM_START_ON is expected


# -------------------------------------------------------------------------------------------------------------- runs


def test_training_then_evaluating_a_data_set_named_on_the_command_line(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    main(command("--num-gpus", "8"))
    log = log_of(tmp_path)
    assert "using detectron2 " in log.splitlines()[0] and "CPU kernel: " in log.splitlines()[0]
    for once in ("running with the full config", "model:\nGeneralizedDINO", "results:\n"):
        assert log.count(once) == 1, once
    trained = log.split("results:\n")[1].splitlines()
    assert trained[0].split()[:4] == ["data", "set", *TOP] and trained[1].split()[:2] == ["boxes", "bbox"]

    weights = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "evaluated"))
    results = run(parsed(command("--eval-only", opts=weights)))
    assert f"{results['bbox']['AP']:.2f}" == trained[1].split()[2]
    assert {"AP-red box", "AP-blue box"} <= set(results["bbox"])
    resumed = run(parsed(command("--eval-only", "--resume")))
    assert resumed["bbox"] == pytest.approx(results["bbox"], nan_ok=True)


def test_resuming_from_the_command_line(command: Callable[..., list[str]], tmp_path: Path) -> None:
    no_test = ("DATASETS.TEST", "()")
    run(parsed(command("--resume", opts=(*no_test, "SOLVER.MAX_ITER", "1"))))
    assert "has no checkpoint: this run starts at iteration 0" in log_of(tmp_path)
    run(parsed(command("--resume", opts=(*no_test, "SOLVER.MAX_ITER", "2"))))
    assert "this run goes on with iteration 1 of 2" in log_of(tmp_path)
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 1


def test_evaluation_without_weights_takes_the_file_of_the_configuration(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(parsed(command(opts=("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"))))
    asked = []

    def find_weights(cfg: CfgNode, config_name: str = "", opts: Sequence[str] = ()) -> str:
        asked.append((config_name, list(opts)))
        return str(tmp_path / "out" / "model_final.pth")

    monkeypatch.setattr("grounding_dino.model_zoo.find_weights", find_weights)
    assert "bbox" in run(parsed(command("--eval-only", opts=("TEST.PRECISION", "float32"))))
    assert asked == [(str(tmp_path / "tiny.yaml"), ["TEST.PRECISION", "float32"])]
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="no weights are known for the configuration .*tiny"):
        run(parsed(command("--eval-only")))


def test_data_sets_of_different_kinds_are_evaluated_into_one_table(
    command: Callable[..., list[str]], coco: str, tmp_path: Path
) -> None:
    images = json.loads((tmp_path / "boxes.json").read_text())["images"]
    expressions = [{"image_id": 7, "caption": "the red box", "bbox": [10, 10, 20, 20]}]
    (tmp_path / "words.json").write_text(json.dumps({"images": images, "expressions": expressions}))
    register_refexp("words", str(tmp_path / "words.json"), str(tmp_path / "pictures"))
    both = ("DATASETS.TEST", "('boxes', 'words')", "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "1")
    results = run(parsed(command(opts=(*both, "SOLVER.BEST_CHECKPOINT_METRIC", "words/refexp/mIoU"))))
    assert set(results["boxes"]) == {"bbox"} and set(results["words"]) == {"refexp"}
    table = log_of(tmp_path).split("results:\n")[-1].splitlines()
    assert [row.split()[:2] for row in table[:3]] == [["data", "set"], ["boxes", "bbox"], ["words", "refexp"]]
    best = torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)
    assert best["best_value"] == pytest.approx(results["words"]["refexp"]["mIoU"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert {"boxes/bbox/AP50", "words/refexp/P@1"} <= set(metrics)


def test_evaluation_names_a_missing_data_set(command: Callable[..., list[str]]) -> None:
    with pytest.raises(ValueError, match="'boxes2' of DATASETS.TEST cannot be evaluated on"):
        run(parsed(command("--eval-only", opts=("DATASETS.TEST", "('boxes2',)"))))
    with pytest.raises(ValueError, match="--eval-only, but DATASETS.TEST names no data set"):
        run(parsed(command("--eval-only", opts=("DATASETS.TEST", "()"))))


def test_processes_that_compute_on_the_cpu_do_not_see_gpus(monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr("detectron2.engine.launch", lambda f, n, **options: started.update(options, f=f, n=n))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    main(command("--num-gpus", "2", opts=("MODEL.DEVICE", "cpu")))
    assert started["f"] is train_module.run_and_explain and started["n"] == 2 and started["dist_url"] == "auto"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


# ------------------------------------------------------------------------------------------------- several processes


def train_net(arguments: list[str], script: Path = ROOT / "train_net.py") -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


TWO = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(command: Callable[..., list[str]], tmp_path: Path) -> None:
    # without random numbers in the step: denoising would draw other ones in each process
    opts = (*TWO, "MODEL.DENOISING.ENABLED_ON", "False", "INPUT.RANDOM_FLIP", "none", "SOLVER.MAX_ITER", "3")
    opts = (*opts, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0")
    output = assert_finished(train_net(command("--num-gpus", "2", opts=opts)))
    assert "boxes bbox" in output.split("results:\n")[1], "both processes' results are gathered"
    alone = parsed(command(opts=(*opts, "OUTPUT_DIR", str(tmp_path / "alone"))))
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
    again = assert_finished(train_net(command("--num-gpus", "2", "--resume", opts=(*opts, "SOLVER.MAX_ITER", "8"))))
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
def test_a_loss_that_is_no_number_in_one_process_ends_all(command: Callable[..., list[str]], tmp_path: Path) -> None:
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    process = train_net(command("--num-gpus", "2", opts=TWO), script=script)
    output, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "NonFiniteError: loss_giou" in output or "NonFiniteError: the gradient of" in output, output
