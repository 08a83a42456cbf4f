"""What gpu_check does, run on the CPU's kernels and model; and what it says where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from grounding_dino.cli import gpu_check
from grounding_dino.ops import ms_deform_attn

import pytest
import torch
from torch import Tensor

ROOT = Path(gpu_check.__file__).resolve().parents[2]


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == gpu_check.NO_GPU == 2
    assert capsys.readouterr().out.startswith("No GPU: torch sees no CUDA device")


def test_a_file_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as exit_:
        gpu_check.main(["--json", str(tmp_path)])
    assert exit_.value.code == 2 and "is a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_without_a_gpu() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.count("\n")) == (2, 1) and done.stdout.startswith("No GPU")


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_kernels_that_are_right_pass(dtype: str) -> None:
    results = list(gpu_check.check_operator("cpu", [dtype]))
    assert len(results) == 4
    assert all(result.passed for result in results), results


def test_kernels_that_are_wrong_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(value: Tensor, *others: Tensor) -> Tensor:
        return ms_deform_attn(value, *others) * 1.001

    monkeypatch.setattr(gpu_check, "ms_deform_attn", off)
    assert not any(result.passed for result in gpu_check.check_operator("cpu", ["fp32"]))


def test_what_is_not_finite_fails() -> None:
    assert gpu_check._error(torch.tensor([1.0, float("nan")]), torch.ones(2).double(), jumps=False) == float("inf")


@pytest.mark.slow
def test_the_model_agrees_with_itself() -> None:
    results = list(gpu_check.check_model("cpu"))
    assert len(results) == 6 and all(result.passed for result in results), results


def test_the_floor_counts_each_tensor_once() -> None:
    arguments = gpu_check.deformable_attention_inputs((64, 64), 2, 8, 2)
    value, locations = arguments[0], arguments[3]
    queries = locations.shape[1]
    others = (locations.numel() + arguments[4].numel()) * 4
    assert gpu_check.least_bytes(arguments, torch.bfloat16) == (value.numel() + queries * 16) * 2 + others
    assert gpu_check.bandwidth("cpu", size=1 << 16, repeats=2) > 0


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    results = list(gpu_check.check_training("cpu"))
    assert [result.passed for result in results] == [True, True], results


def test_a_check_that_breaks_is_a_line() -> None:
    def broken() -> Iterator[gpu_check.Result]:
        yield gpu_check.Result("before", "", True)
        raise RuntimeError("out of memory\nand more")

    assert gpu_check.run([broken])[-1] == gpu_check.Result("broken", "RuntimeError: out of memory", False)
