"""Fixtures shared by all tests: the reference numbers, a tiny random model, tiny data sets below a folder."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "reference"

# A model of a few thousand weights with every part of Grounding DINO in it.
TINY_OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.EMBED_DIM", 32),
    *("MODEL.BACKBONE.NAME", "SwinTransformer", "MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 2, 1, 1]),
    *("MODEL.SWIN.NUM_HEADS", [1, 2, 2, 2], "MODEL.SWIN.WINDOW_SIZE", 4, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    *("MODEL.TEXT_ENCODER.HIDDEN_SIZE", 16, "MODEL.TEXT_ENCODER.NUM_LAYERS", 1, "MODEL.TEXT_ENCODER.NUM_HEADS", 2),
    *("MODEL.TEXT_ENCODER.FFN_DIM", 32, "MODEL.TEXT_ENCODER.DROPOUT", 0.0),
    *("MODEL.PIXEL_DECODER.NUM_LAYERS", 2, "MODEL.PIXEL_DECODER.NUM_HEADS", 2, "MODEL.PIXEL_DECODER.FFN_DIM", 32),
    *("MODEL.PIXEL_DECODER.TEXT_FUSION.EMBED_DIM", 32, "MODEL.PIXEL_DECODER.TEXT_FUSION.DROP_PATH_RATE", 0.0),
    *("MODEL.PIXEL_DECODER.TEXT_FUSION.INIT_SCALE", 0.5, "MODEL.PIXEL_DECODER.TEXT_LAYER.FFN_DIM", 32),
    *("MODEL.QUERY_SELECTION.NUM_QUERIES", 12, "MODEL.DENOISING.NUM_QUERIES", 6),
    *("MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 2, "MODEL.TRANSFORMER_DECODER.NUM_HEADS", 2),
    *("MODEL.TRANSFORMER_DECODER.FFN_DIM", 32, "MODEL.CLASS_HEAD.SCALE", "sqrt_dim", "MODEL.CLASS_HEAD.BIAS_ON", True),
]

# A GLIP of one block, which runs in milliseconds. Groups of GroupNorm have two channels.
TINY_GLIP_OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.EMBED_DIM", 32, "MODEL.WEIGHTS", "", "MODEL.RELEASE.URL", ""),
    *("MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 2]),
    *("MODEL.SWIN.WINDOW_SIZE", 4, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    *("MODEL.TEXT_ENCODER.HIDDEN_SIZE", 16, "MODEL.TEXT_ENCODER.NUM_LAYERS", 1, "MODEL.TEXT_ENCODER.NUM_HEADS", 2),
    *("MODEL.TEXT_ENCODER.FFN_DIM", 32, "MODEL.TEXT_ENCODER.DROPOUT", 0.0),
    *("MODEL.DENSE_HEAD.NUM_BLOCKS", 1, "MODEL.DENSE_HEAD.TEXT_FUSION.EMBED_DIM", 32),
    *("MODEL.DENSE_HEAD.TEXT_FUSION.NUM_HEADS", 2, "MODEL.DENSE_HEAD.TEXT_FUSION.DROPOUT", 0.0),
    *("MODEL.DENSE_HEAD.TEXT_FUSION.INIT_SCALE", 0.5, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
]

# A model of fixed classes with masks: three things, two kinds of stuff. Groups of GroupNorm have two channels, so that
# maps of one pixel do not vanish, and random weights give segments.
TINY_MASK_CLASSES = ["disc", "bar", "cross", "sky", "grass"]
TINY_MASK_OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.EMBED_DIM", 64, "MODEL.RELEASE.URL", "", "MODEL.BACKBONE.WEIGHTS", ""),
    *("MODEL.BACKBONE.NAME", "SwinTransformer", "MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]),
    *("MODEL.SWIN.NUM_HEADS", [1, 2, 2, 2], "MODEL.SWIN.WINDOW_SIZE", 4, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    *("MODEL.SWIN.OUT_FEATURES", ["stage1", "stage2", "stage3", "stage4"]),
    *("MODEL.PIXEL_DECODER.IN_FEATURES", ["stage2", "stage3", "stage4"], "MODEL.PIXEL_DECODER.NUM_LAYERS", 1),
    *("MODEL.PIXEL_DECODER.NUM_HEADS", 2, "MODEL.PIXEL_DECODER.FFN_DIM", 32),
    *("MODEL.MASK_HEAD.IN_FEATURE", "stage1", "MODEL.MASK_HEAD.EMBED_DIM", 16, "MODEL.QUERY_SELECTION.NUM_QUERIES", 12),
    *("MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 2, "MODEL.TRANSFORMER_DECODER.NUM_HEADS", 2),
    *("MODEL.TRANSFORMER_DECODER.FFN_DIM", 32, "MODEL.CLASS_HEAD.NUM_CLASSES", 5, "MODEL.DENOISING.NUM_LABELS", 5),
    *("MODEL.DENOISING.NUM_QUERIES", 6, "MODEL.LOSS.NUM_POINTS", 64, "INPUT.MIN_SIZE_TEST", 64),
    *("INPUT.MAX_SIZE_TEST", 96, "DATASETS.TRAIN", ("tiny_panoptic",), "DATASETS.TEST", ("tiny_panoptic",)),
    *("TEST.PANOPTIC_ON", True, "TEST.SEMANTIC_ON", True, "TEST.OBJECT_MASK_THRESHOLD", 0.0),
    *("TEST.OVERLAP_THRESHOLD", 0.0),
]


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters have shapes but no memory, so that the largest model is built in a moment."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", on_meta)


def random_model(cfg: CfgNode, is_spread: Callable[[str, nn.Parameter], bool]) -> nn.Module:
    """The model of a configuration in eval mode, the same every time.

    Parameters that `is_spread` chooses begin with larger numbers: initial ones, zeros among them, would hide the
    differences that tests look for.
    """
    import grounding_dino.modeling  # noqa: F401

    from detectron2.modeling import build_model

    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_spread(name, parameter):
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """A configuration of a model that runs in milliseconds."""
    from grounding_dino.model_zoo import load_cfg

    return load_cfg("swin_t_ogc", TINY_OPTS)


@pytest.fixture
def tiny_model(tiny_cfg: CfgNode) -> torch.nn.Module:
    """A tiny model with random weights whose queries and tokens differ, in eval mode."""
    weights = "box_head", "sampling_offsets.weight", "attention_weights.weight"
    return random_model(tiny_cfg, lambda name, _: any(word in name for word in weights))


@pytest.fixture(scope="session")
def tiny_glip_opts() -> list[Any]:
    """KEY, VALUE pairs that make a tiny model of any GLIP's configuration."""
    return TINY_GLIP_OPTS


@pytest.fixture
def tiny_glip_cfg() -> CfgNode:
    """The configuration of a tiny GLIP with fusion that runs in milliseconds."""
    from grounding_dino.model_zoo import load_cfg

    return load_cfg("glip_t_c", TINY_GLIP_OPTS)


@pytest.fixture
def tiny_glip(tiny_glip_cfg: CfgNode) -> torch.nn.Module:
    """A tiny GLIP with random weights, in eval mode, whose scores do not all lie below the threshold of detections."""
    model = random_model(
        tiny_glip_cfg, lambda name, parameter: name.startswith(("head.", "tower.")) and parameter.dim() > 1
    )
    nn.init.zeros_(model.head.bias)
    return model


@pytest.fixture(scope="session")
def tiny_panoptic() -> Iterator[str]:
    """A registered panoptic set of no pictures: its metadata say the names, and which classes are things."""
    names = TINY_MASK_CLASSES
    numbers = {10 * (i + 1): i for i in range(len(names))}
    things = {number: i for number, i in numbers.items() if i < 3}
    DatasetCatalog.register("tiny_panoptic", list)
    MetadataCatalog.get("tiny_panoptic").set(
        thing_classes=names[:3],
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id=things,
        stuff_dataset_id_to_contiguous_id=numbers,
    )
    yield "tiny_panoptic"
    DatasetCatalog.remove("tiny_panoptic")
    MetadataCatalog.pop("tiny_panoptic")


@pytest.fixture(scope="session")
def build_tiny_mask(tiny_panoptic: str) -> Callable[..., CfgNode]:
    """`build_tiny_mask(*opts)`: the configuration of a tiny Mask DINO with all three kinds of results."""
    from grounding_dino.model_zoo import load_cfg

    return lambda *opts: load_cfg("mask_dino/coco/r50_panoptic", [*TINY_MASK_OPTS, *opts])


@pytest.fixture
def tiny_mask_cfg(build_tiny_mask: Callable[..., CfgNode]) -> CfgNode:
    """The configuration of a tiny Mask DINO of five classes that runs in milliseconds."""
    return build_tiny_mask()


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference numbers."""
    return REFERENCE


@pytest.fixture(scope="session")
def fill() -> ModuleType:
    """`tests/reference/fill.py`: weights and pictures as functions of names and seeds."""
    spec = importlib.util.spec_from_file_location("reference_fill", REFERENCE / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recipe_weights(fill: ModuleType):
    """`recipe_weights(folder, manifest, shapes={})`: a reference's state dict by its recipe, in its own names."""

    def build(folder: str, manifest: str, shapes: dict[str, list[int]] | None = None) -> dict[str, torch.Tensor]:
        root = REFERENCE / folder
        names = {**json.loads((root / manifest).read_text()), **(shapes or {})}
        overrides = {}
        for file in sorted(root.glob("fill_overrides*.json")):  # one a format, whose names fit no other's
            overrides |= json.loads(file.read_text())
        state = fill.fill_state_dict(names)
        for name in state:
            for pattern, factor in overrides.items():
                if re.search(pattern, name):
                    state[name] = state[name] * np.float32(factor)
        if (root / "aliases.json").exists():
            for name, canonical in json.loads((root / "aliases.json").read_text()).items():
                state[name] = state[canonical]
        return {name: torch.from_numpy(np.asarray(value, order="C")) for name, value in state.items()}

    return build


# ------------------------------------------------------------------------------------------- tiny data sets


@pytest.fixture
def data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of data sets, empty, and a cache of its own."""
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    (tmp_path / "sets").mkdir()
    return tmp_path / "sets"


@pytest.fixture
def write_picture() -> Callable[[Path], None]:
    """`write_picture(path)`: a black picture of 60 x 40."""

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(path)

    return write


@pytest.fixture
def write_coco(data_root: Path, write_picture: Callable[[Path], None]) -> Callable[..., dict[str, Any]]:
    """`write_coco(json_file, names, pictures)`: a COCO json; every picture has one object, their classes take turns.

    Pictures are (file_name in the json, path, further keys); paths are below `data_root`.
    """

    def write(json_file: str, names: Sequence[str], pictures: Sequence[tuple[str, str, dict]]) -> dict[str, Any]:
        content: dict[str, Any] = {"categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)]}
        content["images"] = [
            {"id": i + 1, "file_name": file_name, "height": 40, "width": 60, **keys}
            for i, (file_name, _, keys) in enumerate(pictures)
        ]
        box = {"bbox": [1.0, 2.0, 10.0, 20.0], "area": 200.0, "iscrowd": 0}
        content["annotations"] = [
            {"id": i + 1, "image_id": content["images"][i]["id"], "category_id": 1 + i % len(names), **box}
            for i in range(len(pictures))
        ]
        for _, path, _ in pictures:
            write_picture(data_root / path)
        (data_root / json_file).parent.mkdir(parents=True, exist_ok=True)
        (data_root / json_file).write_text(json.dumps(content))
        return content

    return write


@pytest.fixture(scope="session")
def shapes_tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the package as an .onnx file, which takes most of a minute to write."""
    path = tmp_path_factory.mktemp("exported") / "shapes_tiny.onnx"
    # in a process of its own: pytest would record all that the tracer notes for debugging
    command = [sys.executable, str(ROOT / "tools" / "export_model.py"), "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path
