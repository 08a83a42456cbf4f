"""An exported file, in processes that have no torch, finds what the model found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from grounding_dino.predictor import GroundingPredictor, load_predictor

import numpy as np
import pytest

PICTURES = sorted((Path(__file__).resolve().parents[1] / "demo" / "pictures").glob("*.jpg"))
NAMES = ["red circle", "blue star", "green ring", "purple crescent", "orange star", "black square"]
CAPTION = "a red circle and a blue star"

# What is None in sys.modules cannot be imported.
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "detectron2", "pycocotools", "fvcore", "timm", "cv2", "scipy"):
    sys.modules[name] = None
import json
from grounding_dino.onnx_predictor import OnnxPredictor
path, runtime, pictures, calls = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
predictor = OnnxPredictor(path, runtime, num_threads=1)
for call in calls:
    for found in predictor(pictures, **call):
        fields = {name: getattr(found, name) for name in ("scores", "pred_boxes", "labels", "phrases")}
        print(json.dumps({name: getattr(part, "tolist", lambda: part)() for name, part in fields.items()}))
"""
CALLS = [
    {"categories": NAMES},
    {"categories": NAMES, "box_threshold": 0.15, "best_label_only": False},
    {"caption": CAPTION, "box_threshold": 0.2},
]


@pytest.fixture(scope="module")
def torchs() -> GroundingPredictor:
    return load_predictor(device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_in_a_process_without_torch(shapes_tiny_onnx: Path, torchs: GroundingPredictor, runtime: str) -> None:
    arguments = [str(shapes_tiny_onnx), runtime, json.dumps([str(path) for path in PICTURES]), json.dumps(CALLS)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [each for call in CALLS for each in torchs(PICTURES, **call)]
    assert sum(len(each) for each in expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("labels", "phrases"):
            assert ours[name] == (theirs.get(name) if theirs.has(name) else None)
        np.testing.assert_allclose(ours["scores"], theirs.scores, atol=1e-3)
        boxes = np.asarray(ours["pred_boxes"]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, theirs.pred_boxes.tensor, atol=0.1)


@pytest.mark.parametrize("module", ["onnxruntime", "openvino"])
def test_a_missing_runtime_is_named(tmp_path: Path, module: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from grounding_dino.onnx_predictor import OnnxPredictor
try:
    OnnxPredictor({str(PICTURES[0])!r}, {module!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith(f"pip install {module}"), done.stderr
