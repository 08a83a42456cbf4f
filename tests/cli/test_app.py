"""The page's command line: what it refuses before it serves anything."""

from __future__ import annotations

import socket
from pathlib import Path

from grounding_dino.cli.app import build_detector, build_parser, main
from grounding_dino.web.examples import find_examples

import pytest


def test_models_limits_and_thresholds_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.json"
    file.write_text('{"format": "grounding_dino.thresholds", "version": 1, "default": 0.4, "categories": {"cat": 0.6}}')
    options = ["--model", "shapes_tiny_panoptic", "--thresholds", str(file), "--max-megapixels", "3", "--timeout", "9"]
    detector = build_detector(build_parser().parse_args(options))
    assert list(detector.shelf.models) == ["shapes_tiny_panoptic"]
    assert detector.thresholds is not None and detector.thresholds.of("cat") == 0.6
    assert (detector.limits.megapixels, detector.limits.seconds, detector.limits.upload_bytes) == (3, 9, 32 << 20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "swin_t_ogc=missing.pth"], "no weights 'missing.pth'"),
        (["--model", "shapes"], "no configuration 'shapes'"),
        (["--thresholds", "missing.json"], "no file of thresholds 'missing.json'"),
        (["--port", "0", "--examples", "missing"], "no folder 'missing'"),
    ],
)
def test_what_cannot_be_served_is_said(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen at 127.0.0.1" in capsys.readouterr().err


def test_without_gradio_the_command_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([]) == 2
    assert 'pip install "gradio' in capsys.readouterr().err


def test_examples_of_the_package_say_what_is_in_them(tmp_path: Path) -> None:
    assert all(example.path.is_file() and example.text for example in find_examples(None))
    assert len(find_examples(None)) == 4
    (tmp_path / "mine.png").touch()
    (tmp_path / "notes.txt").touch()
    assert [(example.path.name, example.text) for example in find_examples(str(tmp_path))] == [("mine.png", "")]
