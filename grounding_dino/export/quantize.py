"""Dynamic quantisation of exported files: linear layers and word embeddings in 8 bits, activations as they come."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from grounding_dino.export.onnx_file import check_packages

SMALLEST = 4096  # weights of a matrix: smaller ones, such as those that give a box, save nothing and cost accuracy


def quantize_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Write the .onnx file `source` as `target`, its large matrices in 8-bit integers with a scale for each column.

    ONNX Runtime finds the scale of each activation while it runs (dynamic quantisation), so no pictures are needed.
    Convolutions, products of two activations, and norms stay in float32. Inputs and outputs are those of `source`.

    Returns:
        The number of matrices in 8 bits.

    Raises:
        ImportError: a package is missing.
        ValueError: the file is damaged, or there is no matrix to quantise.
    """
    check_packages()
    _check_whole(source)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    target = Path(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        folded, written = Path(folder) / "folded.onnx", Path(folder) / target.name
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True, skip_onnx_shape=True)
        model = onnx.load(folded, load_external_data=False)
        chosen = large_matrices(model.graph)
        if not chosen:
            raise ValueError(f"{str(source)!r} has no linear layer of {SMALLEST} weights or more to quantise")
        _turn_weights(model.graph)
        onnx.save(model, folded)
        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)  # the package advises what is done above
        try:
            quantize_dynamic(
                str(folded),
                str(written),
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                nodes_to_quantize=chosen,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        finally:
            logger.setLevel(level)
        model = onnx.load(written, load_external_data=False)
        del model.graph.value_info[:]  # not all inferred right: ONNX Runtime warns of those of sequences
        onnx.save(model, written)
        os.replace(written, target)
    return len(chosen)


def _check_whole(path: str | os.PathLike[str]) -> None:
    """Refuse what is no .onnx file with ValueError."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        whole = onnx.load(path, load_external_data=False).HasField("graph")
    except DecodeError:
        whole = False
    if not whole:
        raise ValueError(f"{str(path)!r} is no .onnx file, or a damaged one; export it anew")


def large_matrices(graph: Any) -> list[str]:
    """The nodes that read a large matrix of weights: linear layers, and tables of embeddings."""
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer if weight.data_type == 1}
    place = {"MatMul": 1, "Gemm": 1, "Gather": 0}  # of the weights among a node's inputs
    chosen = []
    for node in graph.node:
        shape = shapes.get(node.input[place[node.op_type]], ()) if node.op_type in place else ()
        if len(shape) == 2 and shape[0] * shape[1] >= SMALLEST:
            chosen.append(node.name)
    return chosen


def _turn_weights(graph: Any) -> None:
    """Give layers that read their weights transposed the transposed weights, once for all layers that share them.

    `quantize_dynamic` does so for each layer anew, in place, and so turns shared weights back and forth; the shapes
    kept of values, which are inferred anew, then contradict it.
    """
    from onnx import numpy_helper

    del graph.value_info[:]
    weights = {weight.name: weight for weight in graph.initializer}
    turned: set[str] = set()
    for node in graph.node:
        transposed = [each for each in node.attribute if each.name == "transB" and each.i]
        if node.op_type != "Gemm" or not transposed or node.input[1] not in weights:
            continue
        name = node.input[1]
        if name not in turned:
            turned.add(name)
            array = numpy_helper.to_array(weights[name]).T.copy()
            graph.initializer.append(numpy_helper.from_array(array, f"{name}.transposed"))
        node.input[1] = f"{name}.transposed"
        transposed[0].i = 0
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for name in turned - read:
        graph.initializer.remove(weights[name])
