"""`grounding-dino COMMAND ...`: the scripts of the checkout under one name."""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

from grounding_dino import __version__
from grounding_dino.cli import doctor
from grounding_dino.cli.main import COMMANDS, INTERRUPTED, main

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the installed command is called; `main` changes that."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/grounding-dino"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grounding_dino", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_every_script_is_a_command() -> None:
    scripts = [
        ROOT / "train_net.py",
        ROOT / "demo" / "demo.py",
        ROOT / "demo" / "app.py",
        *(ROOT / "tools").glob("*.py"),
    ]
    texts = [file.read_text() for file in scripts if file.exists()]
    called = {match[1] for text in texts if (match := re.search(r"from grounding_dino\.cli\.(\w+) import main", text))}
    assert called - {module for module, _ in COMMANDS.values()} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_parser_and_a_main(name: str) -> None:
    module = COMMANDS[name][0]
    found = importlib.import_module(f"grounding_dino.cli.{module}")
    assert isinstance(found.build_parser(), argparse.ArgumentParser) and callable(found.main)


LISTED = """
import sys
from grounding_dino.cli.main import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def test_the_list_is_shown_without_importing_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", done.stdout, re.MULTILINE)


def test_help_of_a_command_calls_it_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("demo", "train", "doctor", "convert", "merge-lora", "check-data"):
        with pytest.raises(SystemExit) as exit_:
            main([name, "--help"])
        assert exit_.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: grounding-dino {name} ") and not re.search(r"\w\.py --", text)


def test_a_script_keeps_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/merge_lora.py"])
    from grounding_dino.cli.merge_lora import build_parser

    assert build_parser().prog == "merge_lora.py"


@pytest.mark.parametrize(
    "wrong, hint",
    [("demmo", "did you mean demo?"), ("convert_data", "did you mean convert-data"), ("xyz", "there are demo, app")],
)
def test_an_unknown_command_names_the_nearest(wrong: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([wrong, "--help"])
    assert exit_.value.code == 2
    assert f"there is no command '{wrong}'; {hint}" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"grounding-dino {__version__}\n"


def test_exit_codes_pass_through(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for code, expected in ((0, 0), (1, 1), (None, 0)):
        monkeypatch.setattr(doctor, "main", lambda argv, code=code: code)
        assert main(["doctor"]) == expected
    done = run("demo", "--input", "nowhere", "--categories", "cat", "--config-file", "no_such_model")
    assert done.returncode == 2 and done.stderr.startswith("grounding-dino demo: error: there is no configuration")


WAITING = """
import sys, time
from grounding_dino.cli import doctor, main
def wait(argv):
    print("waiting", flush=True)
    time.sleep(60)
doctor.main = wait
sys.exit(main.main(["doctor"]))
"""


def test_ctrl_c_is_one_line() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "\ngrounding-dino doctor: interrupted\n"
    assert process.returncode == INTERRUPTED
