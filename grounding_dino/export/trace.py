"""A graph traced for every batch, picture size and text length, and as the file of `torch.export`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.saving import write_atomically
from grounding_dino.export.differences import smallest_differences
from grounding_dino.export.example import Example
from grounding_dino.export.graph import AXES, DetectorGraph
from grounding_dino.exported.description import METADATA_KEY, ModelDescription

import torch

MIN_SIZE = 64  # of an example's sides: a level of one cell would be traced as such


def trace(graph: DetectorGraph, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The graph traced with pictures of about `size` (h, w).

    Raises:
        ValueError: the size is too small, or the model holds weights of half precision.
    """
    if min(size) < MIN_SIZE:
        raise ValueError(f"an example of {size[0]} x {size[1]} pixels is too small; give sides of {MIN_SIZE} or more")
    halves = [name for name, weight in graph.model.named_parameters() if weight.dtype in (torch.half, torch.bfloat16)]
    if halves:
        raise ValueError(
            f"the model's weights are {dict(graph.model.named_parameters())[halves[0]].dtype} ({halves[0]}); export it "
            "in float32, and let the runtime choose another precision"
        )
    inputs = Example.of_size(size).inputs(graph)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(AXES[name], dynamic) for name in graph.input_names)
    with torch.no_grad():
        return torch.export.export(
            graph.eval(), tuple(inputs[name] for name in graph.input_names), dynamic_shapes=shapes, strict=False
        )


def check_folder(path: str | os.PathLike[str]) -> None:
    """See that a file can be written, before minutes are spent on it; its folders are made.

    Raises:
        ValueError: `path` is a folder, or its folder cannot be made or written to.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"the output {str(path)!r} is a folder; name a file, such as {str(file / 'model.onnx')!r}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        probe = file.parent / f".{file.name}.writing-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"the output {str(path)!r} cannot be written ({error}); name another folder") from error


def save_program(program: torch.export.ExportedProgram, path: str, description: ModelDescription) -> None:
    """Write `program` with its description, to be read by `torch.export.load`, whole or not at all.

    It calls deformable attention as this package's operator, which `import grounding_dino.ops` registers.
    """
    extra: dict[str, Any] = {METADATA_KEY: description.to_json()}
    write_atomically(path, lambda file: torch.export.save(program, file, extra_files=extra))


def check_program(path: str, graph: DetectorGraph, size: tuple[int, int]) -> dict[str, float]:
    """As `check_file`, of a file that :func:`save_program` wrote."""
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        with torch.no_grad():
            found: Sequence[Any] = module(*(inputs[name] for name in graph.input_names))
        return found

    return smallest_differences(graph, size, run)
