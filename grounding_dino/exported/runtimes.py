"""The runtimes that an .onnx file runs in: arrays by name in, arrays by name out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from grounding_dino.exported.description import METADATA_KEY, ModelDescription

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Runtime(Protocol):
    """A loaded file."""

    description: ModelDescription
    input_names: frozenset[str]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """The model's outputs by name."""
        ...


class OnnxRuntime:
    """ONNX Runtime, on a CUDA GPU where its package for GPUs is installed and finds one, else on the CPU."""

    def __init__(self, path: Path, num_threads: int = 0, providers: Sequence[str] | None = None) -> None:
        """
        Args:
            num_threads: of an operator; 0 takes all cores.
            providers: ONNX Runtime's execution providers, in order of preference; None: CUDA, if there, then the CPU.

        Raises:
            ImportError: the package is missing.
            ValueError: no such provider, or the file is no model of this project.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(_missing("onnxruntime", "onnxruntime")) from error
        available = onnxruntime.get_available_providers()
        chosen = list(
            providers or (name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available)
        )
        unknown = [name for name in chosen if name not in available]
        if unknown:
            raise ValueError(f"this ONNX Runtime has no provider {unknown[0]!r}; choose from {available}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # the runtime's own kinds, which share no other base
            raise ValueError(f"ONNX Runtime cannot load {str(path)!r}: {error}") from error
        self.description = _described(path, self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
        self.input_names = frozenset(value.name for value in self._session.get_inputs())
        self._output_names = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """As :class:`Runtime`."""
        return dict(zip(self._output_names, self._session.run(self._output_names, dict(inputs))))


class OpenVinoRuntime:
    """OpenVINO, which reads the same file, on the CPU or another device that it knows ("GPU", "NPU")."""

    def __init__(self, path: Path, num_threads: int = 0, device: str = "CPU") -> None:
        """
        Args:
            num_threads: of the CPU; 0 takes all cores.
            device: OpenVINO's name of it.

        Raises:
            ImportError: the package is missing.
            ValueError: no such device, or the file is no model of this project.
        """
        try:
            import openvino
        except ImportError as error:
            raise ImportError(_missing("openvino", "openvino")) from error
        core = openvino.Core()
        if num_threads and device == "CPU":
            core.set_property(device, {"INFERENCE_NUM_THREADS": num_threads})
        # its default on many CPUs is bfloat16, whose scores differ in the second digit
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        try:
            model = core.read_model(str(path))
            self._model = core.compile_model(model, device, options)
        except Exception as error:
            raise ValueError(f"OpenVINO cannot load {str(path)!r} for {device!r}: {error}") from error
        where = ["framework", METADATA_KEY]
        self.description = _described(path, model.get_rt_info(where).value if model.has_rt_info(where) else None)
        # a tensor has several names where graphs were joined; the node has the file's
        self.input_names = frozenset(port.get_node().get_friendly_name() for port in self._model.inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """As :class:`Runtime`."""
        found = self._model(dict(inputs))
        return {name: np.asarray(found[port]) for port in self._model.outputs for name in port.get_names()}


RUNTIMES: dict[str, Callable[..., Runtime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVinoRuntime}


def load_runtime(path: str | os.PathLike[str], name: str = "onnxruntime", **options: Any) -> Runtime:
    """An .onnx file in the runtime of RUNTIMES.

    Raises:
        ValueError, ImportError: an unknown runtime, or as its class does.
        FileNotFoundError: no such file.
    """
    if name not in RUNTIMES:
        raise ValueError(f"unknown runtime {name!r}; choose from {sorted(RUNTIMES)}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no exported model {str(path)!r}; tools/export_model.py writes one")
    return RUNTIMES[name](file, **options)


def _described(path: Path, text: str | None) -> ModelDescription:
    if text is None:
        raise ValueError(f"{str(path)!r} is no model that tools/export_model.py wrote: it does not describe itself")
    try:
        return ModelDescription.from_json(text)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def _missing(module: str, package: str) -> str:
    return f"the model is to run in {module}, but the package {package} is not installed: pip install {package}"
