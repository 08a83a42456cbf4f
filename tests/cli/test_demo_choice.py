"""The demo's --thresholds and --not-wanted."""

from __future__ import annotations

import json

from grounding_dino.cli.demo import main
from grounding_dino.thresholds import CategoryThresholds

import numpy as np
import pytest
from PIL import Image

TINY = [
    "MODEL.PIXEL_DECODER.NUM_LAYERS", "1",
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", "1",
    "MODEL.TEXT_ENCODER.NUM_LAYERS", "1",
    "MODEL.QUERY_SELECTION.NUM_QUERIES", "20",
    "INPUT.MIN_SIZE_TEST", "64",
    "INPUT.MAX_SIZE_TEST", "96",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from grounding_dino.model_zoo import build_model, load_cfg

    import torch
    from safetensors.torch import save_model

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(build_model(load_cfg("shapes_tiny", ["MODEL.DEVICE", "cpu", *TINY])), str(file))
    return str(file)


@pytest.fixture
def detections(weights, tmp_path):
    """The demo's detections in a picture, all of those that the options let pass."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")

    def call(*options):
        files = ["--input", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")]
        assert main([*files, *options, "--weights", weights, "--device", "cpu", "--opts", *TINY]) == 0
        return json.loads((tmp_path / "a.json").read_text())[0]["detections"]

    return call


def test_thresholds_from_a_file(detections, tmp_path):
    names = ["--categories", "red circle", "blue star"]
    every = detections(*names, "--confidence-threshold", "0")
    CategoryThresholds(1.0, {"Red circle": 0.0}).save(tmp_path / "t.json")
    found = detections(*names, "--thresholds", str(tmp_path / "t.json"))
    assert found == [one for one in every if one["label"] == "red circle"] and 0 < len(found) < len(every)


def test_names_that_are_not_wanted(detections):
    alone = detections("--categories", "red circle", "--confidence-threshold", "0")
    for option in (["--categories", "red circle"], ["--text", "red circle ."]):
        found = detections(*option, "--not-wanted", "blue star", "green ring", "--confidence-threshold", "0")
        assert {one["label"] for one in found} == {"red circle"} and len(found) < len(alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--categories", "a", "--thresholds", "none.json"], "there is no file of thresholds 'none.json'"),
        (["--categories", "a", "--thresholds", "bad.json"], "'bad.json' is no json"),
        (["--categories", "a", "--thresholds", "t.json", "--confidence-threshold", "0.3"], "not allowed with"),
        (["--caption", "a", "--thresholds", "t.json"], "--thresholds goes with --categories"),
        (["--caption", "a", "--not-wanted", "b"], "--not-wanted goes with --categories"),
        (["--not-wanted", "b"], "say what to look for"),
    ],
)
def test_wrong_usage_is_a_sentence(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    CategoryThresholds().save("t.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        main(["--input", "a.png", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_model_of_fixed_classes_takes_some_of_its_own(capsys):
    options = ["--input", "a.png", "--config-file", "dino/r50_4scale_12ep", "--weights", "none.pth"]
    assert main([*options, "--not-wanted", "person"]) == 2
    assert "none.pth" in capsys.readouterr().err  # the names are no fault
