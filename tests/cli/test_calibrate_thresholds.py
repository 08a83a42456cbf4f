"""`tools/calibrate_thresholds.py`: from a model and labelled pictures to a file that the predictor reads."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.cli.calibrate_thresholds import main
from grounding_dino.model_zoo import build_model, load_cfg
from grounding_dino.predictor import load_predictor
from grounding_dino.thresholds import CategoryThresholds

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("tools_leave_no_trace")

TINY = [
    "MODEL.PIXEL_DECODER.NUM_LAYERS", "1",
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", "1",
    "MODEL.TEXT_ENCODER.NUM_LAYERS", "1",
    "MODEL.QUERY_SELECTION.NUM_QUERIES", "20",
    "INPUT.MIN_SIZE_TEST", "64",
    "INPUT.MAX_SIZE_TEST", "96",
]  # fmt: skip
NAMES = ["red circle", "blue star", "green ring"]
CUTS = {"red circle": 0.03, "blue star": 0.02}  # the random model's detections above these are made objects


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    from safetensors.torch import save_model

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(build_model(load_cfg("shapes_tiny", ["MODEL.DEVICE", "cpu", *TINY])), str(file))
    return load_predictor("shapes_tiny", str(file), "cpu", TINY)


@pytest.fixture
def pictures(predictor, tmp_path):
    """Pictures of noise in which the model is right above a cut of its own for each of two categories."""
    (tmp_path / "pictures").mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 60})
        found = predictor(tmp_path / "pictures" / f"{number}.png", NAMES, box_threshold=0.0)
        for box, score, label in zip(found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.labels):
            if score > CUTS.get(label, 1.0):
                sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                facts = {"id": len(annotations) + 1, "image_id": number, "category_id": NAMES.index(label) + 5}
                annotations.append({**facts, "bbox": sides, "area": sides[2] * sides[3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 5)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def calibrate(predictor, pictures, monkeypatch):
    """`calibrate(*options)`: the exit code of a run with the small model, loaded once."""
    monkeypatch.setattr("grounding_dino.predictor.load_predictor", lambda *arguments: predictor)
    data = f"{pictures / 'train.json'}:{pictures / 'pictures'}"

    def run(*options, data=data):
        files = ["--dataset", f"calibrated={data}", "--output", str(pictures / "out" / "t.json")]
        return main([*files, *map(str, options), "--opts", *TINY])

    return run


def test_thresholds_a_table_and_a_plot(calibrate, pictures, predictor, capsys):
    assert calibrate("--pool-weight", 0) == 0
    thresholds = CategoryThresholds.load(pictures / "out" / "t.json")
    output = capsys.readouterr().out
    for name, cut in CUTS.items():
        assert thresholds.of(name) == pytest.approx(cut, abs=0.006)
        row = next(line for line in output.splitlines() if line.startswith(name)).split()
        assert row[-5] == f"{thresholds.of(name):.4f}" and row[-1] == "0.000", "no score comes near the default"
        assert thresholds.facts["calibration"]["categories"][name]["f1"] == float(row[-2]) == 1.0
    assert "no object: the default for unknown names" in output and "green ring" in output.splitlines()[-3]
    assert thresholds.facts["without_objects"] == ["green ring"] and thresholds.facts["goal"] == "best F1"
    with Image.open(pictures / "out" / "t.png") as plot:
        assert plot.format == "PNG"
    objects = json.loads((pictures / "train.json").read_text())["annotations"]
    found = [
        predictor(picture, NAMES, box_threshold=thresholds) for picture in sorted((pictures / "pictures").iterdir())
    ]
    wanted = sum(item["category_id"] != 7 for item in objects)
    assert sum(label != "green ring" for each in found for label in each.labels) == wanted


def test_another_set_is_evaluated_with_them(calibrate, pictures, capsys):
    content = json.loads((pictures / "train.json").read_text())
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] == 5]
    (pictures / "val.json").write_text(json.dumps(content))
    assert calibrate("--evaluate", f"held_out={pictures / 'val.json'}:{pictures / 'pictures'}", "--batch-size", 3) == 0
    output = capsys.readouterr().out
    assert output.index("calibrated") < output.index("held_out")
    measured = CategoryThresholds.load(pictures / "out" / "t.json").facts["evaluation"]
    assert measured["data_set"] == "held_out" and measured["categories"]["blue star"]["f1"] is None
    assert measured["categories"]["red circle"]["f1"] == measured["mean_f1"] > measured["mean_f1_at_default"] == 0
    assert measured["mean_f1_gain"] == measured["mean_f1"] and "gain over the default: +" in output


def test_a_precision_that_a_category_cannot_reach(calibrate, pictures, capsys):
    content = json.loads((pictures / "train.json").read_text())
    for item in content["annotations"]:
        if item["category_id"] == 6:
            item["bbox"] = [0, 0, 60, 40]  # where no detection is
    (pictures / "train.json").write_text(json.dumps(content))
    assert calibrate("--precision", 0.9, "--pool-weight", 0, "--plot", pictures / "plots" / "p.png") == 0
    thresholds = CategoryThresholds.load(pictures / "out" / "t.json")
    assert thresholds.of("blue star") == 1.0 and thresholds.of("red circle") == pytest.approx(0.03, abs=0.006)
    assert "no threshold gives a precision of 0.9: 1, so that nothing is found: blue star" in capsys.readouterr().out
    assert (pictures / "plots" / "p.png").is_file() and not (pictures / "out" / "t.png").exists()


def test_broken_pictures_are_listed_and_left_out(calibrate, pictures, capsys):
    (pictures / "pictures" / "2.png").write_bytes(b"broken")
    assert calibrate("--batch-size", 2) == 1
    assert "1 pictures could not be read" in (error := capsys.readouterr().err) and "2.png" in error
    facts = CategoryThresholds.load(pictures / "out" / "t.json").facts
    assert facts["calibration"]["pictures"] == 3 and facts["calibration"]["mean_f1"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iou", "0"], "--iou has to be more than 0"),
        (["--precision", "0"], "--precision has to be more than 0"),
        (["--precision", "90"], "does not lie in [0, 1]"),
        (["--pool-weight", "-1"], "-1 is negative"),
        ([], "--dataset"),
    ],
)
def test_wrong_options_end_with_usage(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*(["--dataset", "a=b.json:c"] if options else []), *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("a=none.json:.", [], "none.json"),
        ("no_such_set", [], "no_such_set"),
        ("odinw13", [], "is a group of data sets"),
        ("a=empty.json:.", [], "no picture has an object"),
        ("a=twice.json:.", [], "'cup' and ' Cup', which are one name to the model"),
        ("a=broken.json:.", [], "none of the 1 pictures of 'a' can be read; "),
        ("a=captions.jsonl:.", [], "texts of their own"),
        ("a=empty.json:.", ["--output", "."], "is a folder"),
        ("a=empty.json:.", ["--output", "x.json", "--plot", "x.json"], "are one file"),
        ("a=empty.json:.", ["--output", "empty.json/x.json"], "folder cannot be made"),
    ],
)
def test_wrong_usage_is_a_sentence(predictor, dataset, options, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("grounding_dino.predictor.load_predictor", lambda *arguments: predictor)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("a.png")
    image = {"id": 1, "file_name": "a.png", "height": 30, "width": 40}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    Path("empty.json").write_text(json.dumps(content))
    Path("twice.json").write_text(
        json.dumps({**content, "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": " Cup"}]})
    )
    Path("broken.png").write_bytes(b"broken")
    Path("broken.json").write_text(json.dumps({**content, "images": [{**image, "file_name": "broken.png"}]}))
    row = {"filename": "a.png", "height": 30, "width": 40, "grounding": {"caption": "a cup", "regions": []}}
    Path("captions.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["--dataset", dataset, *options]) == 2
    assert message in capsys.readouterr().err and not Path("thresholds.json").exists()


def test_a_model_of_fixed_classes_has_to_know_the_names(build_tiny_mask, pictures, monkeypatch, capsys):
    from grounding_dino.predictor import GroundingPredictor

    torch.manual_seed(0)
    fixed = GroundingPredictor(build_tiny_mask())
    monkeypatch.setattr("grounding_dino.predictor.load_predictor", lambda *arguments: fixed)
    content = json.loads((pictures / "train.json").read_text())
    data = ["--dataset", f"fixed={pictures / 'train.json'}:{pictures / 'pictures'}"]
    assert main([*data, "--output", str(pictures / "t.json")]) == 2
    assert "3 names of 'fixed' are none of them, such as 'red circle'" in capsys.readouterr().err
    for category, name in zip(content["categories"], ("Disc", "bar", "cross")):
        category["name"] = name
    (pictures / "train.json").write_text(json.dumps(content))
    assert main([*data, "--output", str(pictures / "t.json")]) == 0
    assert set(CategoryThresholds.load(pictures / "t.json").categories) == {"Disc", "bar"}
