"""Builds, caches and loads the native kernels, and remembers why one is or is not in use.

Environment variables:
    GROUNDING_DINO_KERNELS: `off` runs the plain-PyTorch twin everywhere; `native` makes a kernel that cannot be built
        an error; unset or `auto` builds what can be built and falls back to the twin with one warning.
    GROUNDING_DINO_CACHE: root of the cache, `~/.cache/grounding_dino` by default.
    CXX, NVCC: the compilers to use instead of the ones found on PATH.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding_dino.ops import nvrtc

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parent / "csrc"
CPU_SOURCE = "ms_deform_attn_cpu.cpp"
CUDA_SOURCE = "ms_deform_attn_cuda.cu"  # the library that nvcc builds
CUDA_KERNELS = "ms_deform_attn_cuda.cuh"  # the kernels in it, which NVRTC compiles alone
MODES = ("auto", "native", "off")
CPU_REMEDY = "Install a C++ compiler (Debian: g++; macOS: xcode-select --install; conda: cxx-compiler) or set CXX."
CUDA_REMEDY = (
    "Install the CUDA toolkit, with nvcc, or set CUDA_HOME; or install nvidia-cuda-nvrtc and nvidia-cuda-runtime with "
    "pip, in torch's CUDA version."
)
CUDA_GROUP, CUDA_BLOCK = 8, 256  # threads that share a query and head; threads of a block
BUILD_TIMEOUT = 600  # seconds
LIBRARY_SUFFIX = ".dll" if sys.platform == "win32" else ".so"

_CPU_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
_CPU_LINK = ("-pthread", "-ldl") if sys.platform.startswith("linux") else ()
# Tried in turn: tuned for this processor, then for any of its architecture.
_CPU_TUNING = (("-march=native",), ("-mcpu=native",), ())
CUDA_DEFINES = (f"-DGD_GROUP={CUDA_GROUP}", f"-DGD_BLOCK={CUDA_BLOCK}")
_CUDA_FLAGS = ("-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr", *CUDA_DEFINES)
_NVRTC_FLAGS = ("-std=c++17", *CUDA_DEFINES)

_FIRST_USE = threading.RLock()


class KernelError(RuntimeError):
    """A native kernel was demanded (`GROUNDING_DINO_KERNELS=native`) or named, and could not be built or loaded."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's state: the loaded library, or None and the reason why the twin runs instead."""

    name: str
    library: ctypes.CDLL | nvrtc.CudaModule | None
    path: Path | None
    compiler: str | None
    reason: str


def kernels_mode() -> str:
    """The mode that GROUNDING_DINO_KERNELS asks for: `auto`, `native` or `off`. Raises KernelError for other words."""
    mode = os.environ.get("GROUNDING_DINO_KERNELS", "") or "auto"
    if mode not in MODES:
        raise KernelError(f"GROUNDING_DINO_KERNELS is {mode!r}; it must be one of {', '.join(MODES)}, or unset.")
    return mode


def cache_root() -> Path:
    """Folder of everything that is built or downloaded once."""
    return Path(os.environ.get("GROUNDING_DINO_CACHE") or "~/.cache/grounding_dino").expanduser()


def kernel_cache() -> Path:
    """Folder of the built kernels."""
    return cache_root() / "kernels"


def find_compiler() -> str | None:
    """Path of the C++ compiler: $CXX where set, else the first of g++, clang++ and c++ on PATH; None without one."""
    named = os.environ.get("CXX")
    return _first_on_path([named] if named else ["g++", "clang++", "c++"])


def find_nvcc() -> str | None:
    """Path of nvcc: $NVCC where set, else on PATH, else under $CUDA_HOME or /usr/local/cuda; None without one."""
    toolkits = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    names = [os.environ["NVCC"]] if os.environ.get("NVCC") else ["nvcc", *(f"{t}/bin/nvcc" for t in toolkits if t)]
    return _first_on_path(names)


def _first_on_path(names: Sequence[str]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


@functools.cache
def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on: the architecture and the processor's feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()} {features}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _texts(source: Path) -> list[str]:
    """All that is compiled: the source and the headers of its language beside it."""
    headers = sorted(source.parent.glob("*.h" if source.suffix == ".cpp" else "*.cuh"))
    return [file.read_text(encoding="utf-8") for file in (source, *headers)]


@functools.cache
def nvcc_architectures(nvcc: str) -> tuple[int, ...]:
    """The compute capabilities (90 is 9.0) that a toolkit writes code for, by its own word; () where it says none."""
    try:
        told = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(sorted({int(number) for number in re.findall(r"^compute_(\d+)$", told, re.MULTILINE)}))


def _gencode(architecture: str, nvcc: str) -> str:
    known = nvcc_architectures(nvcc)
    target = nvrtc.target_of(architecture, known, nvcc) if known else f"sm_{architecture}"
    return f"-gencode=arch=compute_{target.split('_')[1]},code={target}"


def _earlier(pattern: str) -> Path | None:
    """A library that an earlier call built into the cache."""
    return next(iter(sorted(kernel_cache().glob(pattern))), None)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file between processes; a process that dies lets go of it. Without file locks it does nothing:
    two processes may then build the same library, each into a file of its own."""
    with open(path, "w", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            logger.debug("no lock on %s (%s): building without it", path, error)
        yield


def _compile(commands: Sequence[Sequence[str]], target: Path) -> None:
    """Runs the first command that succeeds, output to a private file; then moves the loadable result to `target`."""
    errors = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
        output = Path(folder) / target.name
        for command in commands:
            try:
                command = [*command, "-o", str(output)]
                subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=True, cwd=folder)
                ctypes.CDLL(str(output))
            except subprocess.CalledProcessError as error:
                errors.append((error.stderr or error.stdout or "").strip()[:2000])
            except (OSError, subprocess.SubprocessError) as error:
                errors.append(str(error))
            else:
                os.replace(output, target)
                return
    raise KernelError(f"{commands[0][0]} could not build {target.stem}: {errors[0]}")


def _cached(stem: str, suffix: str, make: Callable[[Path], None]) -> Path:
    """The file of the cache; `make` writes it where it is not there, in one process of all that ask for it."""
    folder = kernel_cache()
    target = folder / (stem + suffix)
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / f"{stem}.lock"):
            if not target.exists():
                logger.info("building %s (once, into %s)", target.name, folder)
                make(target)
    except OSError as error:
        raise KernelError(f"the kernel cache {folder} cannot be written ({error}); set GROUNDING_DINO_CACHE") from error
    return target


def _build(source: str, compiler: str, commands: Sequence[Sequence[str]], identity: str) -> Path:
    """The library of `source` from the cache, built first where it is not there. `identity` is all but the compiler
    that decides what is built."""
    stem = f"{Path(source).stem}-{identity}-{_digest(compiler, _version(compiler), *(' '.join(c) for c in commands))}"
    return _cached(stem, LIBRARY_SUFFIX, lambda target: _compile(commands, target))


def build_cpu(compiler: str | None = None) -> Path:
    """Path of the CPU kernel's library, built with `compiler` (default: `find_compiler()`) where the cache lacks it.

    Without a compiler a library that was built earlier for this source and processor is taken. Raises KernelError.
    """
    compiler = compiler or find_compiler()
    source = SOURCES / CPU_SOURCE
    identity = _digest(*_texts(source), _processor())
    if compiler is None:
        if earlier := _earlier(f"{source.stem}-{identity}-*{LIBRARY_SUFFIX}"):
            return earlier
        wanted = f"CXX={os.environ['CXX']} is" if os.environ.get("CXX") else "none of g++, clang++ and c++ is"
        raise KernelError(f"no C++ compiler was found ({wanted} on PATH)")
    commands = [[compiler, *_CPU_FLAGS, *tuning, str(source), *_CPU_LINK] for tuning in _CPU_TUNING]
    return _build(CPU_SOURCE, compiler, commands, identity)


def build_cuda(architectures: Sequence[str], nvcc: str | None = None) -> Path:
    """Path of the CUDA kernel's library for `architectures` ("90" is compute capability 9.0).

    Without nvcc a library that was built earlier from this source for them is taken. Raises KernelError.
    """
    nvcc = nvcc or find_nvcc()
    source = SOURCES / CUDA_SOURCE
    identity = _digest(*_texts(source), *_CUDA_FLAGS, *architectures)
    if nvcc is None:
        if earlier := _earlier(f"{source.stem}-{identity}-*{LIBRARY_SUFFIX}"):
            return earlier
        raise KernelError("nvcc was not found (install the CUDA toolkit, or name it in NVCC or CUDA_HOME)")
    try:
        targets = [_gencode(architecture, nvcc) for architecture in architectures]
    except nvrtc.CudaError as error:
        raise KernelError(str(error)) from error
    return _build(CUDA_SOURCE, nvcc, [[nvcc, *_CUDA_FLAGS, *targets, str(source)]], identity)


def build_cuda_image(architecture: str) -> Path:
    """Path of the CUDA kernels as NVRTC compiles them for one compute capability ("90"), from the cache where it has
    them. Raises KernelError."""
    source = SOURCES / CUDA_KERNELS

    def make(target: Path) -> None:
        image = nvrtc.find_nvrtc().compile(source, architecture, _NVRTC_FLAGS)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
            output = Path(folder) / target.name
            output.write_bytes(image)
            os.replace(output, target)

    try:
        return _cached(f"{source.stem}-{_digest(*_texts(source), *_NVRTC_FLAGS, architecture)}", ".image", make)
    except nvrtc.CudaError as error:
        raise KernelError(str(error)) from error


def _load(name: str, compiler: str | None, remedy: str, open_kernel: Callable[[], Kernel]) -> Kernel:
    """The kernel, or why there is none; an error where the user demands one."""
    mode = kernels_mode()
    if mode == "off":
        return Kernel(name, None, None, compiler, "switched off by GROUNDING_DINO_KERNELS=off")
    try:
        return open_kernel()
    except (KernelError, OSError) as error:
        if mode == "native":
            raise KernelError(
                f"GROUNDING_DINO_KERNELS=native, but there is no {name} kernel: {error}. {remedy}"
            ) from error
        message = "Deformable attention runs in plain PyTorch on the %s, many times slower: %s. %s %s"
        device = "GPU" if name == "cuda" else "CPU"
        logger.warning(message, device, error, remedy, "GROUNDING_DINO_KERNELS=off silences this warning.")
        return Kernel(name, None, None, compiler, str(error))


def _origin(compiler: str | None) -> str:
    return f"built with {compiler}" if compiler else "built earlier, no compiler now"


def _open_cpu() -> Kernel:
    path, compiler = build_cpu(), find_compiler()
    library = ctypes.CDLL(str(path))
    declare_cpu(library)
    return Kernel("cpu", library, path, compiler, _origin(compiler))


def open_cuda(architecture: str) -> Kernel:
    """The CUDA kernel of nvcc (from the cache, or built now), else of NVRTC. Raises KernelError with both reasons."""
    nvcc = find_nvcc()
    try:
        path = build_cuda([architecture], nvcc)
        library = ctypes.CDLL(str(path))
        declare_cuda(library)
        return Kernel("cuda", library, path, nvcc, _origin(nvcc))
    except (KernelError, OSError) as error:
        why_not_nvcc = str(error)
    try:
        path = build_cuda_image(architecture)
        module = nvrtc.CudaModule(path.read_bytes(), CUDA_BLOCK)
    except (KernelError, nvrtc.CudaError) as error:
        raise KernelError(f"{why_not_nvcc}; {error}") from error
    return Kernel("cuda", module, path, "NVRTC", f"compiled by NVRTC, since {why_not_nvcc}")


@functools.cache
def _cpu_kernel(mode: str) -> Kernel:
    return _load("cpu", find_compiler(), CPU_REMEDY, _open_cpu)


@functools.cache
def _cuda_kernel(mode: str, architecture: str) -> Kernel:
    return _load("cuda", find_nvcc(), CUDA_REMEDY, lambda: open_cuda(architecture))


def cpu_kernel() -> Kernel:
    """The CPU kernel, built and loaded at the first call of a process."""
    with _FIRST_USE:
        return _cpu_kernel(kernels_mode())


def cuda_kernel(architecture: str) -> Kernel:
    """The CUDA kernel for a compute capability such as "90", built and loaded at the first call of a process."""
    with _FIRST_USE:
        return _cuda_kernel(kernels_mode(), architecture)


def declare_cpu(library: ctypes.CDLL) -> None:
    """Tells ctypes the argument types of the CPU library's functions (see the end of its source)."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.gd_ms_deform_attn_forward.argtypes = [pointer, integer, *[pointer] * 6, integer]
    library.gd_ms_deform_attn_backward.argtypes = [pointer, integer, *[pointer] * 9, integer]


def declare_cuda(library: ctypes.CDLL) -> None:
    """Tells ctypes the argument types of the CUDA library's functions (see the end of its source)."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    launch: list[Any] = [pointer, integer, integer, ctypes.c_uint]  # sizes, dtype, width, blocks
    library.gd_ms_deform_attn_cuda_forward.argtypes = [*launch, *[pointer] * 7]
    library.gd_ms_deform_attn_cuda_backward.argtypes = [*launch, *[pointer] * 10]
    library.gd_cuda_error.argtypes = [integer]
    library.gd_cuda_error.restype = ctypes.c_char_p
