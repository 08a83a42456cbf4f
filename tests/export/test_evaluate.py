"""Exported files are measured by the project's own evaluators."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from grounding_dino.cli.export_model import main
from grounding_dino.export.evaluate import as_instances, evaluate_file, evaluation_cfg
from grounding_dino.exported.description import ClassDescription, MaskDescription, ModelDescription
from grounding_dino.exported.detections import Detections
from grounding_dino.predictor import load_predictor

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

PICTURES = sorted((Path(__file__).resolve().parents[2] / "demo" / "pictures").glob("*.jpg"))
NAMES = ["red circle", "blue star", "green ring", "purple crescent", "orange star", "black square"]


@pytest.fixture
def found_by_the_model(tmp_path: Path) -> Iterator[str]:
    """A data set of the demo's pictures, whose truth is what the model finds."""
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    predictor = load_predictor(device="cpu")
    for number, path in enumerate(PICTURES):
        width, height = Image.open(path).size
        content["images"].append({"id": number, "file_name": path.name, "width": width, "height": height})
        found = predictor(path, NAMES, box_threshold=0.5)
        for (x0, y0, x1, y1), label in zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()):
            box = [x0, y0, x1 - x0, y1 - y0]
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": label + 1, "bbox": box}
                | {"area": box[2] * box[3], "iscrowd": 0}
            )
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_instances("found_by_the_model", {}, str(tmp_path / "truth.json"), str(PICTURES[0].parent))
    yield "found_by_the_model"
    DatasetCatalog.remove("found_by_the_model")
    MetadataCatalog.pop("found_by_the_model")


@pytest.mark.slow
def test_a_file_and_its_8_bits_are_measured(
    shapes_tiny_onnx: Path, found_by_the_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "int8.onnx"
    opts = ["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0"]
    code = main(
        [
            "--from",
            str(shapes_tiny_onnx),
            "--output",
            str(small),
            "--quantize",
            "int8",
            "--evaluate",
            found_by_the_model,
        ]
        + opts
    )
    assert code == 0 and small.stat().st_size < shapes_tiny_onnx.stat().st_size / 2
    before, told, after = capsys.readouterr().out.strip().splitlines()[-3:]
    assert "(as it is), found_by_the_model, bbox: AP 100.00, AP50 100.00" in before
    assert "matrices in int8" in told and "(int8), found_by_the_model, bbox: AP" in after
    in_8_bits = evaluate_file(small, found_by_the_model, opts)
    assert in_8_bits["bbox"]["AP50"] > 90


def test_detections_as_instances() -> None:
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    found = Detections(
        (5, 6), boxes, np.ones(1, np.float32), np.zeros(1, np.int64), pred_masks=np.ones((1, 5, 6), bool)
    )
    instances = as_instances(found)
    assert instances.image_size == (5, 6) and instances.pred_boxes.tensor.tolist() == boxes.tolist()
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}


def test_the_configuration_follows_the_file() -> None:
    classes = ClassDescription(("a", "b"), (0, 1))
    description = ModelDescription("x", min_size=100, input_format="BGR", classes=classes, masks=MaskDescription())
    cfg = evaluation_cfg(description, ["OUTPUT_DIR", "here"])
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.OUTPUT_DIR) == ("BGR", 100, "here")
    assert cfg.MODEL.MASK_ON and cfg.MODEL.CLASS_HEAD.NUM_CLASSES == 2 and cfg.MODEL.TEXT_ENCODER.NAME == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the file to write with --output"),
        (["--from", "a.onnx"], "name the file to write with --output"),
        (["--from", "a.onnx", "--output", "b.onnx"], "nothing to write to --output but what --quantize makes"),
        (["--output", "a.pt2", "--quantize", "int8"], "are of .onnx files"),
        (["--output", "a.tar"], "ends in neither .onnx nor .pt2"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from", "nowhere.onnx", "--evaluate", "shapes_val"]) == 1
    assert "there is no file 'nowhere.onnx' (--from)" in capsys.readouterr().err
