"""The demo with models of fixed classes: no text, masks, panoptic and semantic results; tiny pictures; video."""

from __future__ import annotations

import json

from grounding_dino.cli.demo import main
from grounding_dino.model_zoo import build_model
from grounding_dino.predictor import load_predictor

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

NAMES = ["disc", "bar", "cross", "sky", "grass"]


@pytest.fixture(scope="module")
def files(build_tiny_mask, tmp_path_factory):
    """The configuration file and the weights of a tiny model that finds segments."""
    from safetensors.torch import save_model

    folder = tmp_path_factory.mktemp("model")
    cfg = build_tiny_mask()
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "class_head" in name or "mask_head" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    (folder / "tiny.yaml").write_text(cfg.dump())
    save_model(model, str(folder / "tiny.safetensors"))
    return str(folder / "tiny.yaml"), str(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def predictor(files):
    return load_predictor(*files, "cpu")


@pytest.fixture
def run(files, predictor, monkeypatch):
    """Run the demo with the small model, loaded once, and all its detections."""
    monkeypatch.setattr("grounding_dino.predictor.load_predictor", lambda *arguments: predictor)

    def call(*arguments):
        return main(["--config-file", files[0], "--confidence-threshold", "0", *map(str, arguments)])

    return call


@pytest.fixture
def folder(tmp_path):
    """A picture in colour, a grey one, one of a single pixel and a thin one."""
    path = tmp_path / "in"
    path.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "colour.png")
    Image.fromarray(noise[..., 0]).save(path / "grey.png")
    Image.fromarray(noise[:1, :1]).save(path / "pixel.png")
    Image.fromarray(noise[:3]).save(path / "thin.png")
    return path


def test_pictures_of_any_size_without_a_text(run, folder, tmp_path, capsys):
    assert run("--input", folder, "--output", tmp_path / "out", "--json", tmp_path / "o.json", "--batch-size", 4) == 0
    sizes = {file.stem: Image.open(file).size for file in (tmp_path / "out").iterdir()}
    assert sizes == {"colour": (60, 40), "grey": (60, 40), "pixel": (1, 1), "thin": (60, 3)}
    record = json.loads((tmp_path / "o.json").read_text())[0]
    assert (record["width"], record["height"]) == (60, 40)
    assert set(record["detections"][0]) == {"label", "score", "box", "category", "mask"}
    assert {d["label"] for d in record["detections"]} <= set(NAMES[:3])
    out = capsys.readouterr().out.splitlines()
    heading = f"{len(record['detections'])} detections, {len(record['segments_info'])} segment"
    assert heading in out[0] and any(line.split() == ["segment", "kind", "share"] for line in out)


def test_masks_in_the_json_are_those_of_the_predictor(run, folder, predictor, tmp_path):
    assert run("--input", folder / "colour.png", "--json", tmp_path / "o.json") == 0
    (record,) = json.loads((tmp_path / "o.json").read_text())
    found = predictor(folder / "colour.png", box_threshold=0.0)
    for detection, mask in zip(record["detections"], found["instances"].pred_masks, strict=True):
        assert np.array_equal(coco_mask.decode(detection["mask"]), mask.numpy())
    ids, segments = found["panoptic_seg"]
    for segment, expected in zip(record["segments_info"], segments, strict=True):
        assert segment["label"] == NAMES[expected["category_id"]] and segment["isthing"] == expected["isthing"]
        assert np.array_equal(coco_mask.decode(segment["mask"]), ids.numpy() == segment["id"])
        assert segment["area"] == coco_mask.area(segment["mask"])
    best = found["sem_seg"].argmax(0).numpy()
    assert sum(part["area"] for part in record["sem_seg"]) == best.size
    for part in record["sem_seg"]:
        assert np.array_equal(coco_mask.decode(part["mask"]), best == NAMES.index(part["label"]))


@pytest.mark.parametrize("kinds", ["semantic", "instances"])
def test_other_kinds_of_results(files, folder, tmp_path, capsys, kinds):
    opts = ["TEST.PANOPTIC_ON", "False", "TEST.SEMANTIC_ON", str(kinds == "semantic")]
    opts += ["TEST.INSTANCE_ON", str(kinds == "instances"), "MODEL.DEVICE", "cpu"]
    arguments = ["--config-file", files[0], "--weights", files[1], "--input", folder / "grey.png"]
    arguments += ["--output", tmp_path / "o.png", "--json", tmp_path / "o.json", "--confidence-threshold", "0"]
    assert main([*map(str, arguments), "--opts", *opts]) == 0
    (record,) = json.loads((tmp_path / "o.json").read_text())
    assert ("sem_seg" in record, "detections" in record) == (kinds == "semantic", kinds == "instances")
    assert ("class" in capsys.readouterr().out.splitlines()[1].split()) == (kinds == "semantic")
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "o.png")), np.asarray(Image.open(folder / "grey.png")))


def test_video(run, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (64, 48))
    for i in range(2):
        writer.write(np.full((48, 64, 3), 90 * i, np.uint8))
    writer.release()
    assert run("--video-input", tmp_path / "in.avi", "--output", tmp_path / "o.avi", "--json", tmp_path / "o.json") == 0
    assert cv2.VideoCapture(str(tmp_path / "o.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    records = json.loads((tmp_path / "o.json").read_text())
    assert [set(record) for record in records] == [{"frame", "time", "detections", "segments_info", "sem_seg"}] * 2


@pytest.mark.parametrize("text", [["--categories", "disc"], ["--text", "disc ."], ["--caption", "a disc"]])
def test_a_text_is_wrong_usage(files, text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--config-file", files[0], "--input", "x.png", *text])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "usage:" in error and "model of fixed classes, which reads no text" in error


def test_weights_that_are_not_there_or_do_not_fit_are_a_sentence(files, folder, tmp_path, capsys):
    arguments = ["--config-file", files[0], "--input", str(folder / "grey.png"), "--device", "cpu", "--weights"]
    assert main([*arguments, str(tmp_path / "gone.pth")]) == 2
    assert "gone.pth" in capsys.readouterr().err
    assert main([*arguments, files[1], "--opts", "MODEL.CLASS_HEAD.NUM_CLASSES", "4"]) == 2
    assert "tiny.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "dino/r50_4scale_12ep"], "no weights are known for the configuration"),
        (["--config-file", "mask_dino/coco/r50_panoptics"], "known names: r50_panoptic"),
        (["--config-file", "r50_semantic"], "fits mask_dino/ade20k/r50_semantic.yaml"),
    ],
)
def test_wrong_models_are_a_sentence(arguments, message, folder, capsys):
    assert main([*arguments, "--input", str(folder / "grey.png"), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
