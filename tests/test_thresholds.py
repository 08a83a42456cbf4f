"""Thresholds by category: what counts as one name, what a file may hold, and what reading it needs."""

from __future__ import annotations

import json
import subprocess
import sys

from grounding_dino.thresholds import BOX_THRESHOLD, CategoryThresholds, check_box_threshold, thresholds_of

import pytest


def test_a_name_has_its_own_threshold_or_the_default():
    thresholds = CategoryThresholds(0.3, {"Traffic  Light": 0.5, "cat": 0})
    assert thresholds.of("traffic light") == thresholds.of(" TRAFFIC LIGHT\n") == 0.5
    assert thresholds.of("cat") == 0.0 and thresholds.of("dog") == 0.3
    assert thresholds_of(thresholds, ["dog", "Cat"]) == [0.3, 0.0] and thresholds_of(0.2, ["dog", "Cat"]) == [0.2, 0.2]
    assert CategoryThresholds().of("anything") == BOX_THRESHOLD


def test_a_file_comes_back_with_its_facts(tmp_path):
    written = CategoryThresholds(0.4, {"größe": 0.25, "cat": 1}, {"iou": 0.5, "made_of": {"pictures": 7}})
    written.save(tmp_path / "deep" / "thresholds.json")
    assert CategoryThresholds.load(tmp_path / "deep" / "thresholds.json") == written
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["thresholds.json"]
    content = json.loads((tmp_path / "deep" / "thresholds.json").read_text(encoding="utf-8"))
    assert list(content)[:4] == ["format", "version", "default", "categories"]
    assert content["format"] == "grounding_dino.thresholds" and content["version"] == 1


def test_facts_do_not_change_what_a_file_says(tmp_path):
    CategoryThresholds(0.4, {}, {"default": 0.9, "version": 2}).save(tmp_path / "t.json")
    assert CategoryThresholds.load(tmp_path / "t.json") == CategoryThresholds(0.4)


GOOD = {"format": "grounding_dino.thresholds", "version": 1, "default": 0.35, "categories": {"cat": 0.4}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no json"),
        ("{", "is no json"),
        ("[" * 100_000, "is no json"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        ("[]", 'would say "format": "grounding_dino.thresholds"'),
        ('{"categories": {}}', "no such file"),
        ({**GOOD, "format": "other"}, "no such file"),
        ({**GOOD, "version": 2}, '"version" is 2, but this release reads 1'),
        ({key: GOOD[key] for key in ("format", "version", "categories")}, 'has no "default"'),
        ({key: GOOD[key] for key in ("format", "version", "default")}, 'has no "categories"'),
        ({**GOOD, "default": 35}, r"the default threshold must lie in \[0, 1\], got 35"),
        ({**GOOD, "default": 10**400}, "the default threshold must lie"),
        ({**GOOD, "default": None}, "the default threshold must be a number .* not None"),
        ({**GOOD, "default": True}, "must be a number .* not True"),
        ({**GOOD, "categories": ["cat"]}, "given as {name: number}, not .'cat'."),
        ({**GOOD, "categories": {"cat": "0.4"}}, "the threshold of 'cat' must be a number .* not '0.4'"),
        ({**GOOD, "categories": {"cat": float("nan")}}, r"the threshold of 'cat' must lie in \[0, 1\], got nan"),
        ({**GOOD, "categories": {" ": 0.4}}, "must have a name, not ' '"),
        ({**GOOD, "categories": {"cat": 0.4, "Cat ": 0.3}}, "'cat' and 'Cat ' are one name"),
        ('{"format": "grounding_dino.thresholds", "default": 0.1, "default": 0.2}', "says 'default' twice"),
    ],
)
def test_a_bad_file_gets_a_sentence_that_names_it(tmp_path, content, message):
    file = tmp_path / "bad.json"
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f"(?s)bad.json.*{message}"):
        CategoryThresholds.load(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json.*calibrate_thresholds"):
        CategoryThresholds.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is a folder"):
        CategoryThresholds.load(tmp_path)


@pytest.mark.parametrize("value", [0, 0.35, 1, CategoryThresholds()])
def test_what_a_box_threshold_may_be(value):
    check_box_threshold(value)


@pytest.mark.parametrize("value", ["0.3", None, True, {"cat": 0.3}, 1.1, -0.1, float("nan")])
def test_what_it_may_not_be(value):
    with pytest.raises((TypeError, ValueError), match="box_threshold must"):
        check_box_threshold(value)


def test_reading_needs_no_torch():
    """The predictor for ONNX Runtime reads thresholds and chooses detections too."""
    code = (
        "import sys, grounding_dino.thresholds, grounding_dino.detection_choice, grounding_dino.prompt_arguments\n"
        "sys.exit('torch' in sys.modules or 'detectron2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
