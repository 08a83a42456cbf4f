import json
import runpy
import sys
from pathlib import Path

from grounding_dino.cli.convert_data import main

import pytest

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 1}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    return str(tmp_path / "coco.json")


def test_a_conversion_says_what_it_wrote_and_what_got_lost(coco, tmp_path, capsys):
    mdetr, odvg = str(tmp_path / "mdetr.json"), str(tmp_path / "odvg.jsonl")
    assert main([*"--from coco --to mdetr --names present --quiet".split(), coco, mdetr]) == 0
    assert json.loads(Path(mdetr).read_text())["images"][0]["caption"] == "cat."
    assert main([*"--from mdetr --to odvg --quiet".split(), mdetr, odvg]) == 0
    printed = capsys.readouterr().out
    assert f"{coco} (coco) -> {mdetr} (mdetr): 1" in printed
    assert "not converted: 1 crowd boxes" in printed


def test_the_options_reach_the_conversion(coco, tmp_path, capsys):
    rows, labels = tmp_path / "rows.jsonl", tmp_path / "labels.json"
    assert main([*"--from coco --to odvg --quiet".split(), coco, str(rows)]) == 0
    labels.write_text('{"0": "lion"}')
    back = [*"--from odvg --to coco --quiet --label-map".split(), str(labels), str(rows), str(tmp_path / "back.json")]
    assert main(back) == 0
    assert json.loads((tmp_path / "back.json").read_text())["categories"] == [{"id": 1, "name": "lion"}]
    assert main(["--images", str(tmp_path / "nowhere"), *back]) == 1
    rows.write_text(rows.read_text() + "{\n")
    assert main(["--strict", *back]) == 1
    assert "no picture folder" in (errors := capsys.readouterr().err) and f"{rows}:2" in errors


def test_options_of_other_formats_are_refused(coco, tmp_path, capsys):
    to_odvg = ["--from", "coco", "--to", "odvg", coco, str(tmp_path / "rows.jsonl")]
    with pytest.raises(SystemExit):
        main(["--names", "all", *to_odvg])
    assert "odvg has no such sentences" in capsys.readouterr().err
    assert main(["--label-map", "labels.json", *to_odvg]) == 1
    assert "labels.json) belongs to ODVG rows; coco has its names in the file" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_progress_bar_counts_records(coco, tmp_path, capsys):
    assert main([*"--from coco --to odvg".split(), coco, str(tmp_path / "rows.jsonl")]) == 0
    assert "1/1" in capsys.readouterr().err


def test_errors_are_sentences(tmp_path, capsys):
    assert main([*"--from coco --to odvg --quiet".split(), str(tmp_path / "no.json"), str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no annotation file")


def test_the_script_calls_the_command(monkeypatch, capsys):
    script = Path(__file__).parents[2] / "tools" / "convert_data.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0 and "--from" in capsys.readouterr().out
