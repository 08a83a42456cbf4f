"""`make docs-check`: what it runs, what it leaves, and that it notices what is wrong."""

from __future__ import annotations

import sys

import pytest
from documents.check import Step, check, plan, why_not
from documents.commands import TEXTS, Command, parse
from documents.sandbox import make_sandbox

ROOT_STEPS = "README.md", "GETTING_STARTED.md"


def command(text: str) -> Command:
    return Command("page.md", tuple(text.split()), text)


def test_a_command_that_nobody_checks_is_an_error():
    with pytest.raises(LookupError, match="nothing checks 'frobnicate --now'"):
        command("frobnicate --now").why_not_run()
    with pytest.raises(KeyError):
        command("python -m frobnicate").why_not_run()


def test_options_that_do_not_exist_are_errors(capsys):
    with pytest.raises(SystemExit):
        parse("demo/demo.py", ["--input", "a.jpg", "--categories", "cat", "--box-treshold", "0.3"])
    assert "unrecognized arguments" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("grounding-dino", ["demo", "--inputs", "a.jpg"])
    assert parse("grounding-dino", ["demo", "--input", "a.jpg"]).input == ["a.jpg"]


def test_what_has_no_stand_in_is_left_out_with_a_reason():
    assert why_not(command("python train_net.py --config-file shapes_tiny --eval-only")) is None
    assert "mm_swin_b" in why_not(command("python train_net.py --config-file mm_swin_b --eval-only"))
    missing = command("python train_net.py --config-file shapes_tiny --eval-only DATASETS.TEST ('d3_full',)")
    assert "d3_full" in why_not(missing)
    assert "network" in command("torchrun --nnodes 2 train_net.py --config-file shapes_tiny").why_not_run()


@pytest.mark.parametrize("name", ROOT_STEPS)
def test_the_first_documents_are_run(name):
    steps = list(plan(name))
    assert any(step.reason is None for step in steps)


@pytest.mark.slow
def test_steps_run_in_a_copy_of_the_checkout(tmp_path, capsys):
    """One command of each kind, and the README's first program; all of them: `make docs-check`."""
    folder = tmp_path / "copy"
    folder.mkdir()
    published = command("python demo/demo.py --config-file swin_t_ogc --input street.jpg --output found.jpg --text cat")
    program = next(
        step for step in plan("README.md") if step.text.startswith("from grounding_dino import load_predictor")
    )
    steps = [program, Step("page.md", published.text, [sys.executable, *published.words[1:]])]
    steps += [
        Step("page.md", "fails", [sys.executable, "-c", "raise SystemExit('what went wrong')"]),
        Step("page.md", "not run", [], "a reason"),
    ]
    assert check(steps, folder) == 1
    printed = capsys.readouterr().out
    assert "what went wrong" in printed and "1 FAILED, 1 not run, 2 ok" in printed
    assert (folder / "found.jpg").is_file()


def test_all_documents_are_planned():
    assert {step.document for name in TEXTS for step in plan(name)} >= {
        "README.md",
        "MODEL_ZOO.md",
        "docs/migration.md",
    }


def test_a_copy_is_made_of_a_checkout(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_sandbox(tmp_path / "nowhere", tmp_path / "copy")
