"""8-bit files: which matrices are chosen, and that results stay near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401
from grounding_dino.export.quantize import large_matrices, quantize_file

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def model_of(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Rows of a table, through three linear layers, the middle one in batches of one."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="embed"),
        helper.make_node("MatMul", ["words", "large"], ["hidden"], name="layer"),
        helper.make_node("MatMul", ["hidden", "stack"], ["stacked"], name="stacked"),
        helper.make_node("MatMul", ["stacked", "small"], ["found"], name="box"),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", [ids], [found], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"grounding_dino": "kept"})
    return model


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    shapes = {"table": (100, 64), "large": (64, 96), "stack": (1, 96, 96), "small": (96, 4)}
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path)).run(None, {"ids": np.arange(50)})[0]


def test_linear_layers_and_tables_of_words_are_chosen(weights: dict[str, np.ndarray]) -> None:
    assert large_matrices(model_of(weights).graph) == ["embed", "layer"]


def test_a_quantised_file_is_smaller_and_near(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    onnx.save(model_of(weights), source)
    assert quantize_file(source, target) == 2
    assert target.stat().st_size < 0.8 * source.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "model.onnx"]
    properties = {each.key: each.value for each in onnx.load(target).metadata_props}
    assert properties["grounding_dino"] == "kept"
    assert not onnx.load(target).graph.value_info  # runtimes infer shapes themselves, and rightly
    exact = run(source)
    assert 0 < np.abs(run(target) - exact).max() < 0.1 * np.abs(exact).max()
    assert quantize_file(source, source) == 2  # in its own place
    np.testing.assert_array_equal(run(source), run(target))


def test_layers_that_share_transposed_weights(tmp_path: Path) -> None:
    """Two Gemm nodes read one matrix transposed, whose shape the file keeps too, as GLIP's levels do."""
    weight = RANDOM.standard_normal((32, 160)).astype(np.float32)
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 160]) for name in ("one", "two")]
    found = [helper.make_tensor_value_info(f"{row.name}_found", TensorProto.FLOAT, ["batch", 32]) for row in rows]
    nodes = [
        helper.make_node("Gemm", [row.name, "weight"], [each.name], name=f"{row.name}_layer", transB=1)
        for row, each in zip(rows, found)
    ]
    kept = helper.make_tensor_value_info("weight", TensorProto.FLOAT, weight.shape)
    graph = helper.make_graph(
        nodes, "graph", rows, found, [numpy_helper.from_array(weight, "weight")], value_info=[kept]
    )
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), source)
    assert quantize_file(source, target) == 2
    pictures = {row.name: RANDOM.standard_normal((3, 160)).astype(np.float32) for row in rows}
    for row, answer in zip(pictures.values(), onnxruntime.InferenceSession(str(target)).run(None, pictures)):
        exact = row @ weight.T
        assert 0 < np.abs(answer - exact).max() < 0.1 * np.abs(exact).max()


def test_a_file_without_large_matrices_is_told(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = model_of({name: array[..., :4] for name, array in weights.items()} | {"large": weights["large"][:4]})
    path = tmp_path / "model.onnx"
    graph = model.graph
    del graph.node[1:]
    graph.node[0].output[0] = "found"
    onnx.save(model, path)
    with pytest.raises(ValueError, match="no linear layer of 4096 weights or more"):
        quantize_file(path, tmp_path / "int8.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100)])
def test_a_damaged_file_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.onnx' is no .onnx file, or a damaged one"):
        quantize_file(path, tmp_path / "int8.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
