"""Files of exported models in ONNX Runtime and OpenVINO, beside the models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.export_model import main
from grounding_dino.export.describe import describe_model
from grounding_dino.export.differences import TOLERANCE, differences
from grounding_dino.export.example import Example
from grounding_dino.export.graph import AXES, graph_of
from grounding_dino.export.onnx_file import check_file, write_onnx
from grounding_dino.exported.description import METADATA_KEY, ModelDescription
from grounding_dino.exported.runtimes import load_runtime

import onnx
import pytest
from detectron2.config import CfgNode
from torch import nn

SMALL = [
    *("MODEL.PIXEL_DECODER.NUM_LAYERS", 1, "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1),
    *("MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS", 3),
]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["grounding_dino", "dino", "mask_dino"])
def test_a_file_finds_what_its_model_finds_whatever_the_batch_the_sizes_and_the_texts(
    family: str,
    family_cfg: Callable[..., CfgNode],
    spread_model: Callable[[CfgNode], nn.Module],
    parts_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    cfg = family_cfg(family, *SMALL)
    model = spread_model(cfg)
    graph = graph_of(model)
    path = str(tmp_path / "model.onnx")
    write_onnx(graph, describe_model(cfg, model, family), path, (96, 128))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert max(check_file(path, graph, (96, 128)).values()) < TOLERANCE
    for runtime in (load_runtime(path), load_runtime(path, "openvino")):
        for size, count in (((129, 195), 3), ((96, 70), 1), ((70, 96), 2)):
            example = Example.of_size(size, count)
            inputs = {name: tensor.numpy() for name, tensor in example.inputs(graph).items()}
            outputs = runtime.run({name: inputs[name] for name in runtime.input_names})
            for row in range(count):
                alone = example.picture(row).answers(graph)
                found = parts_of(list(alone), [outputs[name] for name in alone], row, alone)
                assert max(differences(alone, found).values()) < TOLERANCE, (runtime, size, row)


@pytest.mark.slow
def test_the_shipped_model_is_exported_and_checked_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made" / "shapes.onnx"
    assert main(["--output", str(path)]) == 0
    assert "largest difference from the model for one picture: pred_logits" in capsys.readouterr().out
    model = onnx.load(str(path))
    (said,) = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    description = ModelDescription.from_json(said)
    assert (description.name, description.family, description.min_size) == ("shapes_tiny", "grounding_dino", 192)
    assert json.loads(said)["text"]["max_tokens"] == 256
    for value in model.graph.input:
        axes = [size.dim_param for size in value.type.tensor_type.shape.dim]
        assert {axis: axes[axis] for axis in AXES[value.name]} == AXES[value.name]


@pytest.mark.slow
def test_a_torch_file_finds_what_its_model_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shapes.pt2"
    assert main(["--random-weights", "--output", str(path), *map(str, SMALL)]) == 0
    assert "torch, " in capsys.readouterr().out and path.is_file()
