"""`train_net.py`: arguments, data sets from the command line, evaluation, and errors in words."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.cli import train as train_module
from grounding_dino.cli.train import build_parser, check_equal_starts, load_config, main, processes_wanted, run
from grounding_dino.data.datasets import register_refexp
from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode

ROOT = Path(__file__).parents[2]
TOP = ("AP", "AP50")


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


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.WEIGHTS", "nowhere.pth"), "there is no checkpoint at nowhere.pth"),
        (("DATASETS.TRAIN", "('boxes3',)"), "there is no data set 'boxes3'"),
        (("SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"), "this step changed no weight"),
    ],
)
def test_errors_of_a_run_end_in_a_sentence_and_leave_their_traceback_in_the_log(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    opts: tuple[str, ...],
    message: str,
) -> None:
    arguments = command(opts=("SOLVER.MAX_ITER", "4", "DATASETS.TEST", "()", "SOLVER.WARMUP_ITERS", "0", *opts))
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert str(exit_.value).startswith("train_net.py: error: ") and message in str(exit_.value)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert "Traceback" in log_of(tmp_path) and message in log_of(tmp_path)

    with pytest.raises((ValueError, FloatingPointError), match=message):
        main(["--debug", *arguments])


def test_an_error_of_the_program_itself_keeps_its_traceback(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "resume_or_load", lambda trainer, resume: [][0])
    with pytest.raises(IndexError):
        main(command())
    monkeypatch.setattr(Trainer, "resume_or_load", lambda trainer, resume: torch.nn.Linear(2, 2)(torch.zeros(3)))
    with pytest.raises(RuntimeError):
        main(command())


def test_processes_on_machines_without_a_common_folder_are_refused() -> None:
    check_equal_starts([6, 6], "output")
    with pytest.raises(ValueError, match=r"from the iterations \[6, 0\]: OUTPUT_DIR 'output' has to be one folder"):
        check_equal_starts([6, 0], "output")


def test_torchrun_and_numbers_of_processes_do_not_go_together(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**worker, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(command("--num-gpus", "2"))
    assert "torchrun (or submitit) has started the processes of this run" in capsys.readouterr().err
