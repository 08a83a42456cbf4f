"""The benchmarks on pictures that take milliseconds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from grounding_dino.cli import benchmark
from grounding_dino.cli.benchmark_training import (
    OPTIONS,
    build_step,
    changed,
    default_options,
    first_batch,
    load_training_config,
)
from grounding_dino.cli.data_arguments import add_data_arguments

import pytest
import torch
from detectron2.config import CfgNode


def test_table_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "times.json"
    assert benchmark.main(["--op", "--size", "32x40", "--repeats", "2", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "CPU kernel" in printed
    records = json.loads(file.read_text())
    assert [(r["dtype"], r["direction"]) for r in records] == [
        (dtype, direction) for dtype in ("fp32", "bf16") for direction in ("forward", "forward+backward")
    ]
    for record in records:
        assert record["queries"] == 4 * 5 + 2 * 3 + 1 * 2 + 1
        assert 0 < record["native"]["lowest"] <= record["native"]["median"] <= record["native"]["highest"]
        assert f"{record['dtype']} {record['direction']}" in printed


def test_numbers_of_queries(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    arguments = ["--op", "--size", "32x40", "--queries", "3", "50", "--dtype", "fp32", "--repeats", "1", "--scattered"]
    benchmark.main([*arguments, "--json", str(file)])
    assert [r["queries"] for r in json.loads(file.read_text())] == [3, 3, 50, 50]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--op", "--size", "800"],
        ["--op", "--size", "0x5"],
        ["--op", "--repeats", "0"],
        ["--op", "--queries", "0"],
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    assert exit_.value.code == 2


def test_training_with_and_without_an_option(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "times.json"
    options = ["--option", "bf16 autocast", "--option", "text encoder checkpointed", "--option", "averaged weights"]
    arguments = ["--train", "--repeats", "2", *options, "--json", str(file), *command(opts=("MODEL.DEVICE", "cpu"))]
    assert benchmark.main(arguments) == 0
    records = json.loads(file.read_text())
    assert [r["option"] for r in records] == [
        *("as configured", "bf16 autocast", "text encoder checkpointed", "averaged weights")
    ]
    printed = capsys.readouterr().out
    for record in records:
        assert record["option"] in printed and record["pictures"] == 2 and record["loading"] > 0
        assert 0 < record["step"]["lowest"] <= record["step"]["median"] <= record["step"]["highest"]


OF_GLIP = {"tower checkpointed"}
NOT_OF_GLIP = {"no denoising", "encoder checkpointed", "decoder checkpointed"}


@pytest.mark.parametrize(("family", "absent"), [("command", OF_GLIP), ("glip_command", NOT_OF_GLIP)])
def test_options_of_parts_that_a_model_has_not_are_left_out(
    family: str, absent: set[str], request: pytest.FixtureRequest
) -> None:
    cfg = _config(request.getfixturevalue(family))
    assert set(default_options(cfg)) == set(OPTIONS) - absent - {"fp16 autocast"}


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in OF_GLIP | {"fp16 autocast"}])
def test_every_option_takes_steps(name: str, command: Callable[..., list[str]]) -> None:
    _take_steps(name, command)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in NOT_OF_GLIP | {"fp16 autocast"}])
def test_every_option_takes_steps_of_glip(name: str, glip_command: Callable[..., list[str]]) -> None:
    _take_steps(name, glip_command)


def _config(command: Callable[..., list[str]]) -> CfgNode:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    return load_training_config(parser.parse_args(command(opts=("MODEL.DEVICE", "cpu"))))


def _take_steps(name: str, command: Callable[..., list[str]]) -> None:
    cfg = _config(command)
    batch, _ = first_batch(cfg)
    step, _ = build_step(changed(cfg, OPTIONS[name]), batch)
    try:
        step()
        step()
    finally:
        torch.use_deterministic_algorithms(False)


def test_half_precision_training_is_refused_where_it_cannot_be(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--train", "--option", "fp16 autocast", *command(opts=("MODEL.DEVICE", "cpu"))])
    assert "'float16' needs a GPU" in capsys.readouterr().err
