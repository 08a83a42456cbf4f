"""The doctor's rows, its verdict and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from grounding_dino.cli import doctor

import pytest

ROOT = Path(doctor.__file__).resolve().parents[2]


def _fine() -> list[doctor.Check]:
    return [doctor.Check("first", "all is well"), doctor.Check("the second", "too")]


def _broken() -> list[doctor.Check]:
    return [doctor.Check("third", "is missing", "Get one."), doctor.Check("fourth", "is old", "Renew it.")]


def _crashing() -> list[doctor.Check]:
    raise ImportError("no module named so")


def test_ok_ends_with_ok_and_rows_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([], [_fine]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  first       all is well", "  the second  too", "ok"]


def test_the_first_thing_to_fix_comes_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([], [_fine, _broken]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "fix first: third: Get one."
    assert lines[2].startswith("! third") and lines[3].startswith("! fourth")


def test_a_check_that_fails_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([], [_crashing, _fine]) == 1
    assert "ImportError: no module named so" in capsys.readouterr().out


def test_the_declared_ranges_are_found() -> None:
    wanted = doctor.requirements()
    assert set(doctor.PACKAGES) <= set(wanted)
    assert wanted["torch"].startswith(">=")


def test_extras_are_a_line_each_and_never_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: row for row in doctor.check_extras()}
    assert {"extra hub", "extra lora", "extra huggingface"} <= set(rows) and "extra dev" not in rows
    assert rows["extra hub"].text.startswith("huggingface_hub ") and not any(row.remedy for row in rows.values())
    monkeypatch.setattr(doctor, "extras", lambda: {"some": ["numpy", "no-such-package"]})
    (row,) = doctor.check_extras()
    assert row.text == 'not installed (no-such-package): pip install "grounding-dino-detectron2[some]"'


def test_versions_outside_the_range_are_reported() -> None:
    rows = {row.name: row for row in doctor.check_packages({"torch": ">=2.6", "numpy": "<1.0"})}
    assert rows["torch"].remedy == "" and "in the tested range: >=2.6" in rows["torch"].text
    assert "outside the tested range" in rows["numpy"].text and rows["numpy"].remedy == 'pip install "numpy<1.0"'


def test_this_installation_is_described() -> None:
    rows = {row.name: row for row in doctor.run_checks()}
    assert {"Python", "torch", "Detectron2", "CPU kernel", "compilers", "CPU", "cache", "vocabulary"} <= set(rows)
    assert "compat" in rows["Detectron2"].text or "upstream" in rows["Detectron2"].text
    assert rows["vocabulary"].remedy == ""


def test_a_changed_vocabulary_is_found(tmp_path: Path) -> None:
    file = tmp_path / "vocabulary.txt"
    assert "missing" in doctor.check_vocabulary(file)[0].text
    file.write_text("[PAD]\n")
    assert "has checksum" in doctor.check_vocabulary(file)[0].text


def test_a_missing_model_is_found(tmp_path: Path) -> None:
    row = doctor.check_shipped_model(tmp_path)[0]
    assert "missing" in row.text and row.remedy
    (tmp_path / "shapes_tiny.safetensors").write_bytes(b"x" * 2_000_000)
    assert doctor.check_shipped_model(tmp_path)[0] == doctor.Check("shipped model", "shapes_tiny.safetensors, 2.0 MB")


def test_a_cache_that_cannot_be_made_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "new" / "one"))
    assert "not there yet" in doctor.check_cache()[0].text
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "file" / "one"))
    assert doctor.check_cache()[0].remedy


@pytest.mark.slow
def test_the_script_runs() -> None:
    command = [sys.executable, str(ROOT / "tools" / "doctor.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=None, cwd=ROOT)
    last = done.stdout.splitlines()[-1]
    assert (done.returncode == 0) == (last == "ok"), done.stdout + done.stderr
