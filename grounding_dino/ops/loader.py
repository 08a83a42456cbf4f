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
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parent / "csrc"
CPU_SOURCE = "ms_deform_attn_cpu.cpp"
CUDA_SOURCE = "ms_deform_attn_cuda.cu"
MODES = ("auto", "native", "off")
CPU_REMEDY = "Install a C++ compiler (Debian: g++; macOS: xcode-select --install; conda: cxx-compiler) or set CXX."
CUDA_REMEDY = "Install the CUDA toolkit, with nvcc, or set CUDA_HOME."
BUILD_TIMEOUT = 600  # seconds
LIBRARY_SUFFIX = ".dll" if sys.platform == "win32" else ".so"

_CPU_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
_CPU_LINK = ("-pthread", "-ldl") if sys.platform.startswith("linux") else ()
# Tried in turn: tuned for this processor, then for any of its architecture.
_CPU_TUNING = (("-march=native",), ("-mcpu=native",), ())
_CUDA_FLAGS = ("-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr")

_FIRST_USE = threading.RLock()


class KernelError(RuntimeError):
    """A native kernel was demanded (`GROUNDING_DINO_KERNELS=native`) or named, and could not be built or loaded."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's state: the loaded library, or None and the reason why the twin runs instead."""

    name: str
    library: ctypes.CDLL | None
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
    """All that is compiled: the source and the headers beside it."""
    return [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]


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


def _build(source: str, compiler: str, commands: Sequence[Sequence[str]], identity: str) -> Path:
    """The library of `source` from the cache, built first where it is not there. `identity` is all but the compiler
    that decides what is built."""
    folder = kernel_cache()
    stem = f"{Path(source).stem}-{identity}-{_digest(compiler, _version(compiler), *(' '.join(c) for c in commands))}"
    target = folder / (stem + LIBRARY_SUFFIX)
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / f"{stem}.lock"):
            if not target.exists():
                logger.info("building %s with %s (once, into %s)", source, compiler, folder)
                _compile(commands, target)
    except OSError as error:
        raise KernelError(f"the kernel cache {folder} cannot be written ({error}); set GROUNDING_DINO_CACHE") from error
    return target


def build_cpu(compiler: str | None = None) -> Path:
    """Path of the CPU kernel's library, built with `compiler` (default: `find_compiler()`) where the cache lacks it.

    Without a compiler a library that was built earlier for this source and processor is taken. Raises KernelError.
    """
    compiler = compiler or find_compiler()
    source = SOURCES / CPU_SOURCE
    identity = _digest(*_texts(source), _processor())
    if compiler is None:
        earlier = sorted(kernel_cache().glob(f"{source.stem}-{identity}-*{LIBRARY_SUFFIX}"))
        if earlier:
            return earlier[0]
        wanted = f"CXX={os.environ['CXX']} is" if os.environ.get("CXX") else "none of g++, clang++ and c++ is"
        raise KernelError(f"no C++ compiler was found ({wanted} on PATH)")
    commands = [[compiler, *_CPU_FLAGS, *tuning, str(source), *_CPU_LINK] for tuning in _CPU_TUNING]
    return _build(CPU_SOURCE, compiler, commands, identity)


def build_cuda(architectures: Sequence[str], nvcc: str | None = None) -> Path:
    """Path of the CUDA kernel's library for `architectures` ("90" is compute capability 9.0). Raises KernelError."""
    nvcc = nvcc or find_nvcc()
    if nvcc is None:
        raise KernelError("nvcc was not found (install the CUDA toolkit, or name it in NVCC or CUDA_HOME)")
    source = SOURCES / CUDA_SOURCE
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    identity = _digest(*_texts(source), *targets)
    return _build(CUDA_SOURCE, nvcc, [[nvcc, *_CUDA_FLAGS, *targets, str(source)]], identity)


def _load(name: str, compiler: str | None, remedy: str, architectures: Sequence[str] = ()) -> Kernel:
    mode = kernels_mode()
    if mode == "off":
        return Kernel(name, None, None, compiler, "switched off by GROUNDING_DINO_KERNELS=off")
    try:
        path = build_cuda(architectures) if name == "cuda" else build_cpu()
        origin = f"built with {compiler}" if compiler else "built earlier, no compiler now"
        return Kernel(name, ctypes.CDLL(str(path)), path, compiler, origin)
    except (KernelError, OSError) as error:
        if mode == "native":
            raise KernelError(
                f"GROUNDING_DINO_KERNELS=native, but there is no {name} kernel: {error}. {remedy}"
            ) from error
        message = "Deformable attention runs in plain PyTorch on the %s, many times slower: %s. %s %s"
        device = "GPU" if name == "cuda" else "CPU"
        logger.warning(message, device, error, remedy, "GROUNDING_DINO_KERNELS=off silences this warning.")
        return Kernel(name, None, None, compiler, str(error))


@functools.cache
def _cpu_kernel(mode: str) -> Kernel:
    kernel = _load("cpu", find_compiler(), CPU_REMEDY)
    if kernel.library is not None:
        declare_cpu(kernel.library)
    return kernel


@functools.cache
def _cuda_kernel(mode: str, architecture: str) -> Kernel:
    kernel = _load("cuda", find_nvcc(), CUDA_REMEDY, [architecture])
    if kernel.library is not None:
        declare_cuda(kernel.library)
    return kernel


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
    library.gd_ms_deform_attn_cuda_forward.argtypes = [pointer, integer, *[pointer] * 7]
    library.gd_ms_deform_attn_cuda_backward.argtypes = [pointer, integer, *[pointer] * 10]
    library.gd_cuda_error.argtypes = [integer]
    library.gd_cuda_error.restype = ctypes.c_char_p
