"""The operator benchmark on a picture that takes milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.cli import benchmark

import pytest


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
