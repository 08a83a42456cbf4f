"""The CUDA kernels compiled by NVRTC, which needs no GPU, and which of nvcc and NVRTC is taken."""

from __future__ import annotations

import _ctypes
import ctypes
import stat
from pathlib import Path

from grounding_dino.ops import loader, nvrtc

import pytest

KERNELS = [
    f"gd_{direction}_{name}_{w}" for direction in ("forward", "backward") for name in nvrtc.TYPES for w in (1, 4)
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for kernels; the real one stays as it is."""
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def compiler() -> nvrtc.Compiler:
    """NVRTC of the installed torch; skips where torch came without CUDA."""
    if nvrtc.find_library() is None:
        pytest.skip("the installed torch brings no NVRTC")
    return nvrtc.find_nvrtc()


def _nvcc(path: Path, body: str, architectures: str = "compute_80 compute_90") -> str:
    """A script that stands in for nvcc, and knows these architectures."""
    lines = f'[ "$1" = --list-gpu-arch ] && {{ printf "%s\\n" {architectures}; exit 0; }}'
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo fake; exit 0; }}\n{lines}\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def _compile(compiler: nvrtc.Compiler, architecture: str) -> bytes:
    return compiler.compile(loader.SOURCES / loader.CUDA_KERNELS, architecture, loader._NVRTC_FLAGS)


@pytest.mark.slow
def test_compiles_for_every_gpu_that_nvrtc_knows(compiler: nvrtc.Compiler) -> None:
    known = [number for number in compiler.architectures if 70 <= number <= 121]
    assert {80, 90, 100, 120} <= set(known)
    for architecture in known:
        image = _compile(compiler, str(architecture))
        assert image.startswith(b"\x7fELF"), architecture
        assert all(name.encode() + b"\0" in image for name in KERNELS), architecture


@pytest.mark.slow
def test_a_gpu_newer_than_nvrtc_gets_ptx_for_the_driver(compiler: nvrtc.Compiler) -> None:
    image = _compile(compiler, "999")
    assert image.endswith(b"\0") and f".target sm_{max(compiler.architectures)}".encode() in image
    assert all(f".entry {name}(".encode() in image for name in KERNELS)


def test_a_gpu_older_than_nvrtc_is_refused(compiler: nvrtc.Compiler) -> None:
    with pytest.raises(nvrtc.CudaError, match=r"builds for compute capabilities from \d+\.\d on, but the GPU has 2\.0"):
        _compile(compiler, "20")


def test_the_compilers_words_are_passed_on(compiler: nvrtc.Compiler, tmp_path: Path) -> None:
    (tmp_path / "bad.cuh").write_text("int no_such_type_here::x;")
    with pytest.raises(
        nvrtc.CudaError, match=r"could not compile bad\.cuh for sm_90: bad\.cuh\(1\): error: name followed by"
    ):
        compiler.compile(tmp_path / "bad.cuh", "90", [])


@pytest.mark.parametrize(
    ("architecture", "target"), [("80", "sm_80"), ("90", "sm_90"), ("87", "compute_80"), ("120", "compute_90")]
)
def test_code_for_the_gpu_itself_or_the_newest_ptx_before_it(architecture: str, target: str) -> None:
    assert nvrtc.target_of(architecture, [90, 80], "this compiler") == target


def test_the_library_of_torchs_own_cuda_is_preferred(tmp_path: Path) -> None:
    names = ("libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc-builtins.so.13.2", "libnvrtc.so.11.2")
    for name in names:
        (tmp_path / name / "lib").mkdir(parents=True)
        (tmp_path / name / "lib" / name).write_bytes(b"")
    folders = [tmp_path / name for name in names]
    assert [nvrtc.find_library(folders, cuda).name for cuda in ("13.2", "12.6", "11.8", "")] == [
        "libnvrtc.so.13",
        "libnvrtc.so.12",
        "libnvrtc.so.11.2",
        "libnvrtc.so.12",
    ]
    assert nvrtc.find_library([], "13.2") is None


def test_headers_lie_beside_the_library_or_in_another_package(tmp_path: Path) -> None:
    library = tmp_path / "nvrtc" / "lib" / "libnvrtc.so.12"
    assert nvrtc.find_headers(library, [tmp_path / "runtime"]) is None
    for package in ("runtime", "nvrtc"):
        (tmp_path / package / "include").mkdir(parents=True)
        (tmp_path / package / "include" / "cuda_fp16.h").write_text("")
        assert nvrtc.find_headers(library, [tmp_path / "runtime"]) == tmp_path / package / "include"


@pytest.mark.slow
def test_an_image_is_compiled_once(cache: Path, compiler: nvrtc.Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loader.build_cuda_image("90")
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: pytest.fail("it is in the cache"))
    assert loader.build_cuda_image("90") == first and first.parent == cache
    assert first.read_bytes().startswith(b"\x7fELF")


def _without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")


@pytest.mark.slow
def test_without_nvcc_nvrtc_compiles_and_says_why(
    cache: Path, compiler: nvrtc.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_nvcc(monkeypatch)
    monkeypatch.setattr(nvrtc, "DRIVER", None)  # this process itself: loads, and has no driver's functions
    kernel = loader.open_cuda("90")
    assert isinstance(kernel.library, nvrtc.CudaModule) and kernel.compiler == "NVRTC"
    assert kernel.reason.startswith("compiled by NVRTC, since nvcc was not found")


@pytest.mark.slow
def test_where_nvcc_does_not_know_the_gpu_nvrtc_compiles(
    cache: Path, tmp_path: Path, compiler: nvrtc.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", _nvcc(tmp_path / "nvcc", "exit 1", "compute_100"))
    monkeypatch.setattr(nvrtc, "DRIVER", None)
    kernel = loader.open_cuda("90")
    assert kernel.compiler == "NVRTC" and "from 10.0 on, but the GPU has 9.0" in kernel.reason


def test_without_both_the_error_names_both(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> nvrtc.Compiler:
        raise nvrtc.CudaError("NVRTC was not found")

    _without_nvcc(monkeypatch)
    monkeypatch.setattr(nvrtc, "find_nvrtc", missing)
    with pytest.raises(loader.KernelError, match="nvcc was not found .*; NVRTC was not found"):
        loader.open_cuda("90")


def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(nvrtc.CudaError, match="driver .no-such-driver.so. cannot be loaded"):
        nvrtc.CudaModule(b"", 256, driver="no-such-driver.so")


def test_nvcc_is_asked_for_the_gpu_or_the_newest_ptx(cache: Path, tmp_path: Path) -> None:
    """The stand-in writes down what it was asked for; what it gives is no library, which ends the build."""
    nvcc = _nvcc(tmp_path / "nvcc", f'echo "$@" > {tmp_path}/asked; exit 1')
    for architecture, asked in (("80", "arch=compute_80,code=sm_80"), ("120", "arch=compute_90,code=compute_90")):
        with pytest.raises(loader.KernelError, match="could not build"):
            loader.build_cuda([architecture], nvcc)
        assert f"-gencode={asked} " in (tmp_path / "asked").read_text()
    with pytest.raises(loader.KernelError, match=r"from 8\.0 on, but the GPU has 7\.0"):
        loader.build_cuda(["70"], nvcc)


def test_without_nvcc_an_earlier_library_is_taken(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = 'for a; do [ "$previous" = -o ] && target="$a"; previous="$a"; done; cp {} "$target"'
    built = loader.build_cuda(["90"], _nvcc(tmp_path / "nvcc", copy.format(_ctypes.__file__)))
    ctypes.CDLL(str(built))
    _without_nvcc(monkeypatch)
    assert loader.build_cuda(["90"]) == built
    with pytest.raises(loader.KernelError, match="nvcc was not found"):
        loader.build_cuda(["80"])
