"""tools/export_model.py: what it refuses, and in what words; tests/export/test_onnx_file.py runs what it writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from grounding_dino.cli.export_model import FORMATS, OPSETS, build_parser, main
from grounding_dino.export import onnx_file

import pytest


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "model.bin"], "ends in neither .onnx nor .pt2"),
        (["--output", "model.onnx", "--weights", "a.pth", "--random-weights"], "exclude each other"),
        (["--output", "model.onnx", "--size", "800"], "is not a size"),
        (["--output", "model.onnx", "--opset", "11"], "invalid choice"),
        (
            ["--from", "a.onnx", "--evaluate", "shapes_val", "--weights", "b.pth"],
            "--weights is about exporting a model",
        ),
        (["--from", "a.onnx", "--evaluate", "shapes_val", "--no-check"], "--no-check is about exporting a model"),
        (["--from", "a.onnx", "--quantize", "int8", "--output", "b.onnx", "OUTPUT_DIR", "x"], "are of --evaluate"),
    ],
)
def test_flags_that_make_no_sense_end_with_a_sentence(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config-file", "no_such_config"], "there is no configuration 'no_such_config'"),
        (["--weights", "no_such_file.pth"], "no_such_file.pth"),
        (["--config-file", "shapes_tiny", "TEST.PRECISION", "bfloat16"], "models are exported in float32"),
        (["--config-file", "shapes_tiny", "--random-weights", "--size", "32x32"], "32 x 32 pixels is too small"),
    ],
)
def test_what_cannot_be_exported_is_an_error_in_words(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "model.onnx"), *flags]) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file" / "model.onnx")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main(["--format", "onnx", "--output", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    assert main(["--output", str(tmp_path / "model.onnx")]) == 1
    assert "pip install onnxscript" in capsys.readouterr().err


def test_the_parser_knows_what_the_writers_do() -> None:
    assert OPSETS == onnx_file.OPSETS
    assert set(FORMATS) == {"onnx", "torch"}
    assert "examples:" in build_parser().format_help()
