"""`train_net.py` with GLIP: training with averaged weights, going on, evaluation, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.train import build_parser, main, run

import pytest
import torch

NO_TEST = ("DATASETS.TEST", "()")
AVERAGED = ("SOLVER.EMA.ENABLED_ON", "True", "SOLVER.EMA.DECAY", "0.5")


def parsed(command: list[str]) -> Any:
    return build_parser().parse_args(command)


def saved(folder: Path, name: str = "model_final.pth") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_training_then_evaluating(glip_command: Callable[..., list[str]], tmp_path: Path) -> None:
    main(glip_command("--num-gpus", "0", opts=AVERAGED))
    log = (tmp_path / "out/log.txt").read_text()
    assert "model:\nGLIP(" in log and "results:\n" in log
    weights = ("MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "evaluated"))
    results = run(parsed(glip_command("--eval-only", "--num-gpus", "0", opts=weights)))
    assert {"AP", "AP50", "AP-red box", "AP-blue box"} <= set(results["bbox"])
    chunked = run(parsed(glip_command("--eval-only", opts=(*weights, "TEST.CATEGORIES_PER_PROMPT", "1"))))
    assert set(chunked["bbox"]) == set(results["bbox"])


def test_an_interrupted_run_goes_on_bit_for_bit(glip_command: Callable[..., list[str]], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    opts = (*NO_TEST, *AVERAGED, "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1")
    run(parsed(glip_command(opts=(*opts, "OUTPUT_DIR", str(whole)))))
    parts.mkdir()
    shutil.copy(whole / "model_0000001.pth", parts)
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    run(parsed(glip_command("--resume", opts=(*opts, "OUTPUT_DIR", str(parts)))))
    assert "this run goes on with iteration 2 of 3" in (parts / "log.txt").read_text()
    stopped, expected, resumed = saved(parts, "model_0000001.pth"), saved(whole), saved(parts)
    assert any(not torch.equal(value, stopped["model"][name]) for name, value in expected["model"].items())
    assert_equal(resumed["model"], expected["model"])
    for kind in ("parameters", "weights"):
        assert_equal(resumed["ema"][kind], expected["ema"][kind])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.AUG.ENABLED", "True"), "test-time augmentation is for semantic results.* MODEL.MASK_ON is False"),
        (("MODEL.DENSE_HEAD.IN_FEATURES", "['p3']"), "IN_FEATURES names .'p3'., but SwinTransformer gives stage2"),
    ],
)
def test_what_does_not_go_with_a_dense_head_is_refused(
    glip_command: Callable[..., list[str]], opts: tuple[str, ...], message: str
) -> None:
    with pytest.raises((SystemExit, ValueError), match=message):
        run(parsed(glip_command("--eval-only", opts=("MODEL.WEIGHTS", "", *opts))))
