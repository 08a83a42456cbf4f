"""A traced graph as an .onnx file: translated, described, checked, and written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grounding_dino.export.differences import smallest_differences
from grounding_dino.export.graph import AXES, DetectorGraph
from grounding_dino.export.onnx_operators import translations
from grounding_dino.export.trace import trace
from grounding_dino.exported.description import METADATA_KEY, ModelDescription

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = (18, 19, 20)
_EXTERNAL_FROM = 2**31 - 2**26  # bytes of weights that one protobuf does not hold


def check_packages() -> None:
    """See that the packages for ONNX are there.

    Raises:
        ImportError: one is not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"an export to ONNX needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
            f"pip install {' '.join(missing)}, or this project with its extra [onnx]"
        )


def write_onnx(
    graph: DetectorGraph, description: ModelDescription, path: str, size: tuple[int, int], opset: int = OPSETS[0]
) -> None:
    """Trace `graph` with an example of `size` (h, w) and write it, in one file up to 2 GB of weights.

    Larger weights lie beside it as `<name>.data`.

    Raises:
        ImportError: a package is missing.
        ValueError: as :func:`trace` raises it.
    """
    check_packages()
    # Attention is taken apart into its formula, here as in the exporter: what a kernel gives may lie otherwise in
    # memory, so that a view of the one would be none of the other.
    with _quiet(), sdpa_kernel(SDPBackend.MATH):
        program = trace(graph, size)
        found = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            custom_translation_table=translations(),
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            optimize=False,  # takes longer than all the rest; what a runtime does not do itself is done below
            verbose=False,
        )
    assert found is not None
    model = found.model
    _simplify(model)
    _name_axes(model)
    model.metadata_props[METADATA_KEY] = description.to_json()
    model.producer_name = "grounding_dino"
    _save(model, Path(path))


def _simplify(model: Any) -> None:
    """Fold what depends on no input, and compute once what is computed alike."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=False)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # traces of source files
    model.metadata_props.clear()


def _name_axes(model: Any) -> None:
    """Readable names of the open axes; what the trace noted of inner values, in its own symbols, is forgotten."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in model.graph.inputs:
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        value.shape = ir.Shape([AXES[value.name].get(axis, size) for axis, size in enumerate(sizes)])
    for value in model.graph.outputs:
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        value.shape = ir.Shape(["batch", *sizes[1:]])


def _save(model: Any, path: Path) -> None:
    import onnx_ir as ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    partial = path.with_name(f".{path.name}.writing-{os.getpid()}")
    data = path.with_name(f"{path.name}.data")
    try:
        if weights < _EXTERNAL_FROM:
            ir.save(model, partial)
        else:
            ir.save(model, partial, external_data=data.name)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def check_file(path: str, graph: DetectorGraph, size: tuple[int, int]) -> dict[str, float]:
    """The largest differences of the file in ONNX Runtime from the model, by output, for a picture of `size` (h, w).

    Raises:
        ValueError: the file is not valid.
    """
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"the file is no valid ONNX model: {error}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}

    def run(inputs: Mapping[str, torch.Tensor]) -> list[Any]:
        return session.run(list(graph.output_names), {n: x.numpy() for n, x in inputs.items() if n in known})

    return smallest_differences(graph, size, run)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself.

    The tracer's take long, and are made whenever their logger has a handler, as pytest gives one to every logger.
    """
    logger, tracer = logging.getLogger("torch.onnx"), logging.getLogger("torch.__trace")
    level, handlers = logger.level, tracer.handlers
    logger.setLevel(logging.ERROR)
    if "TORCH_TRACE" not in os.environ:
        tracer.handlers = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        tracer.handlers = handlers
