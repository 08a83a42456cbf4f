"""The CUDA kernels without nvcc: compiled by NVRTC from the packages that torch brings, launched by the CUDA driver.

NVRTC is a library (NVRTC documentation, nvrtc.h), so it needs no toolkit, no C++ compiler and, to compile, no GPU.
What it gives, a cubin or PTX, is loaded and launched through the driver's interface (CUDA Driver API, cuda.h).
Libraries are looked for under their Linux names.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TYPES = ("fp32", "bf16", "fp16")  # in the order of the C interface's numbers
DRIVER = "libcuda.so.1"


class CudaError(RuntimeError):
    """NVRTC or the CUDA driver is missing, or refused something."""


@dataclass(frozen=True)
class Compiler:
    """An NVRTC library, the folder of CUDA's headers, and what it says of itself."""

    library: ctypes.CDLL
    path: Path
    include: Path
    version: str
    architectures: tuple[int, ...]  # compute capabilities that it writes code for, 90 is 9.0

    def compile(self, source: Path, architecture: str, options: Sequence[str]) -> bytes:
        """The cubin of `source` for a compute capability ("90"), or PTX where the GPU is newer than NVRTC.

        Raises:
            CudaError: NVRTC cannot write code for the GPU, or the source does not compile.
        """
        target = target_of(architecture, self.architectures, f"NVRTC of CUDA {self.version}")
        program, library = ctypes.c_void_p(), self.library
        text = source.read_bytes()
        if library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None):
            raise CudaError(f"NVRTC ({self.path}) could not read {source}")
        try:
            words = [f"--gpu-architecture={target}", f"-I{self.include}", *options]
            array = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
            if library.nvrtcCompileProgram(program, len(words), array):
                log = self._fetch("ProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
                raise CudaError(f"NVRTC ({self.path}) could not compile {source.name} for {target}: {log[:2000]}")
            return self._fetch("CUBIN" if target.startswith("sm_") else "PTX", program)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _fetch(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        failed = getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        if failed or getattr(self.library, f"nvrtcGet{what}")(program, data):
            raise CudaError(f"NVRTC ({self.path}) did not hand over its {what}")
        return data.raw


def target_of(architecture: str, known: Iterable[int], compiler: str) -> str:
    """What a compiler that knows these compute capabilities is to build for a GPU of `architecture`.

    Code for the GPU itself (`sm_90`), or for a GPU newer than the compiler the newest PTX (`compute_90`), which the
    driver translates.

    Raises:
        CudaError: the GPU is older than all that the compiler knows.
    """
    wanted, numbers = int(architecture), sorted(known)
    if wanted in numbers:
        return f"sm_{wanted}"
    older = [number for number in numbers if number < wanted]
    if not older:
        oldest = f"{numbers[0] / 10:.1f}" if numbers else "none"
        raise CudaError(
            f"{compiler} builds for compute capabilities from {oldest} on, but the GPU has {wanted / 10:.1f}; use an "
            "older CUDA toolkit, or a torch built for an older CUDA"
        )
    return f"compute_{older[-1]}"


def package_folders() -> list[Path]:
    """The folders of NVIDIA's packages beside torch: site-packages/nvidia/*."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted(folder for root in roots for folder in Path(root).glob("*") if folder.is_dir())


def toolkit_folders() -> list[Path]:
    """Installed CUDA toolkits: $CUDA_HOME, /usr/local/cuda."""
    named = os.environ.get("CUDA_HOME")
    return [Path(folder) for folder in (named, "/usr/local/cuda") if folder and Path(folder).is_dir()]


def _torch_libraries() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent / "lib" if spec is not None and spec.origin else None


def find_library(folders: Sequence[Path] | None = None, cuda: str | None = None) -> Path | None:
    """The NVRTC library of torch's own CUDA version where there are several; None without one.

    Args:
        folders: places that have it below lib or lib64, or directly; default: NVIDIA's packages, torch, toolkits.
        cuda: torch's CUDA version ("13.2"); default: the installed torch's.
    """
    if folders is None:
        folders = [*package_folders(), *filter(None, [_torch_libraries()]), *toolkit_folders()]
    if cuda is None:
        import torch

        cuda = torch.version.cuda
    found = [
        file
        for folder in folders
        for below in ("lib", "lib64", ".")
        for file in sorted((folder / below).glob("libnvrtc[.-]*so*"))
        if "builtins" not in file.name
    ]
    major = (cuda or "").split(".")[0]
    fitting = [file for file in found if re.search(rf"\.so\.{major}(\.|$)", file.name)]
    return next(iter([*fitting, *found]), None)


def find_headers(library: Path, folders: Sequence[Path] | None = None) -> Path | None:
    """The folder of cuda_fp16.h: beside the library, in NVIDIA's packages or in a toolkit; None without one."""
    others = [*package_folders(), *toolkit_folders()] if folders is None else folders
    candidates = [library.parent.parent / "include", *(folder / "include" for folder in others)]
    return next((folder for folder in candidates if (folder / "cuda_fp16.h").is_file()), None)


@functools.cache
def find_nvrtc() -> Compiler:
    """NVRTC, loaded. Raises CudaError where the library or CUDA's headers are missing."""
    path = find_library()
    if path is None:
        raise CudaError("NVRTC was not found (pip packages nvidia-cuda-nvrtc and nvidia-cuda-runtime hold it)")
    include = find_headers(path)
    if include is None:
        raise CudaError(f"NVRTC is {path}, but cuda_fp16.h was not found (pip package nvidia-cuda-runtime holds it)")
    try:
        library = ctypes.CDLL(str(path))
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        architectures = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(architectures)
    except (OSError, AttributeError) as error:
        raise CudaError(f"NVRTC ({path}) cannot be used: {error}") from error
    return Compiler(library, path, include, f"{major.value}.{minor.value}", tuple(architectures))


class Problem(ctypes.Structure):
    """`Problem` of ms_deform_attn_cuda.cuh: sizes and strides, then pointers to device memory."""

    _fields_ = (("numbers", ctypes.c_int64 * 16), ("pointers", ctypes.c_void_p * 4))


class CudaModule:
    """The kernels of an image, with the functions of the library that nvcc builds: only the launch is another.

    The image is loaded once into each device's context, at that device's first launch.
    """

    def __init__(self, image: bytes, block: int, driver: str | None = None) -> None:
        """`block`: threads a block, as the image was compiled for; `driver`: the driver's library, DRIVER by default.

        Raises:
            CudaError: there is no CUDA driver.
        """
        driver = driver or DRIVER
        self._image = image
        self._block = block
        try:
            self._driver = ctypes.CDLL(driver)
        except OSError as error:
            raise CudaError(f"the CUDA driver ({driver}) cannot be loaded: {error}") from error
        self._functions: dict[tuple[int, str], ctypes.c_void_p] = {}
        self._modules: dict[int, ctypes.c_void_p] = {}
        self._lock = threading.Lock()

    def gd_ms_deform_attn_cuda_forward(
        self,
        sizes: Any,
        dtype: int,
        width: int,
        blocks: int,
        value: int,
        shapes: int,
        start: int,
        locations: int,
        weights: int,
        output: int,
        stream: int,
    ) -> int:
        """As in ms_deform_attn_cuda.cu; a CUresult, 0 for success."""
        problem = _problem(sizes, shapes, start, locations, weights)
        return self._launch(f"gd_forward_{TYPES[dtype]}_{width}", blocks, stream, problem, (value, output))

    def gd_ms_deform_attn_cuda_backward(
        self,
        sizes: Any,
        dtype: int,
        width: int,
        blocks: int,
        value: int,
        shapes: int,
        start: int,
        locations: int,
        weights: int,
        gradient: int,
        value_gradient: int,
        location_gradient: int,
        weight_gradient: int,
        stream: int,
    ) -> int:
        """As in ms_deform_attn_cuda.cu; a CUresult, 0 for success."""
        problem = _problem(sizes, shapes, start, locations, weights)
        pointers = (value, gradient, value_gradient, location_gradient, weight_gradient)
        return self._launch(f"gd_backward_{TYPES[dtype]}_{width}", blocks, stream, problem, pointers)

    def gd_cuda_error(self, code: int) -> bytes:
        """What a CUresult means."""
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(code, ctypes.byref(text))
        return text.value or f"CUDA driver error {code}".encode()

    def _launch(self, name: str, blocks: int, stream: int, problem: Problem, pointers: Sequence[int]) -> int:
        context, code = self._context()
        if not code:
            function, code = self._function(context, name)
        if code:
            return code
        values = [problem, *(ctypes.c_void_p(pointer) for pointer in pointers)]
        parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid = (blocks, 1, 1, self._block, 1, 1)
        return int(self._driver.cuLaunchKernel(function, *grid, 0, ctypes.c_void_p(stream), parameters, None))

    def _context(self) -> tuple[int, int]:
        """The thread's context, torch's own (the primary one) where the thread has none yet; and an error's number."""
        context = ctypes.c_void_p()
        code = int(self._driver.cuCtxGetCurrent(ctypes.byref(context)))
        if code or context.value:
            return context.value or 0, code
        import torch

        device = ctypes.c_int(torch.cuda.current_device())
        code = int(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        return context.value or 0, code or int(self._driver.cuCtxSetCurrent(context))

    def _function(self, context: int, name: str) -> tuple[ctypes.c_void_p, int]:
        """A kernel in a context, from the image loaded there; and an error's number."""
        with self._lock:
            if (context, name) in self._functions:
                return self._functions[context, name], 0
            function, code = ctypes.c_void_p(), 0
            if context not in self._modules:
                module = ctypes.c_void_p()
                code = int(self._driver.cuModuleLoadData(ctypes.byref(module), self._image))
                if code:
                    return function, code
                self._modules[context] = module
            code = int(self._driver.cuModuleGetFunction(ctypes.byref(function), self._modules[context], name.encode()))
            if not code:
                self._functions[context, name] = function
            return function, code


def _problem(sizes: Any, *pointers: int) -> Problem:
    return Problem(tuple(sizes), (ctypes.c_void_p * len(pointers))(*pointers))
