"""Building, caching and doing without the native kernels."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

import grounding_dino
from grounding_dino.ops import loader

import pytest

ROOT = Path(grounding_dino.__file__).resolve().parent.parent

# Runs the operator and prints what it is equal to and which kernel did it.
USE = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
import torch
from grounding_dino.ops import kernel_status, ms_deform_attn, ms_deform_attn_torch
shapes, starts = torch.tensor([[2, 3]]), torch.tensor([0])
arguments = torch.rand(1, 6, 2, 16), shapes, starts, torch.rand(1, 5, 2, 1, 4, 2), torch.rand(1, 5, 2, 1, 4)
for _ in range(3):
    torch.testing.assert_close(ms_deform_attn(*arguments), ms_deform_attn_torch(*arguments))
print(kernel_status()[0].text)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for kernels; the real one stays as it is."""
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GROUNDING_DINO_KERNELS", raising=False)
    return tmp_path / "cache" / "kernels"


def _compiler(folder: Path, body: str, name: str = "fake-compiler") -> str:
    """An executable script that stands in for a compiler; `$target` is its output file, calls are counted in a log."""
    path = folder / name
    log = folder / "calls"
    find_target = 'for a; do [ "$previous" = -o ] && target="$a"; previous="$a"; done'
    answer_version = '[ "$1" = --version ] && { echo fake 1.0; exit 0; }'
    path.write_text(f"#!/bin/sh\n{answer_version}\necho call >> {log}\n{find_target}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def _libraries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def _use(environment: dict[str, str], code: str = USE) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], env=full, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def real_library() -> Path:
    """The CPU kernel as the machine's own compiler makes it, from the user's cache."""
    return loader.build_cpu()


def test_builds_once_and_then_takes_it_from_the_cache(cache: Path, tmp_path: Path, real_library: Path) -> None:
    compiler = _compiler(tmp_path, f'cp {real_library} "$target"')
    first, second = loader.build_cpu(compiler), loader.build_cpu(compiler)
    assert first == second and first.parent == cache and _libraries(cache) == [first]
    assert (tmp_path / "calls").read_text() == "call\n"
    ctypes.CDLL(str(first)).gd_ms_deform_attn_forward  # noqa: B018  (AttributeError where it is missing)


def test_another_compiler_or_source_is_another_library(
    cache: Path, tmp_path: Path, real_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers = [_compiler(tmp_path, f'cp {real_library} "$target"', name) for name in ("one", "two")]
    built = {loader.build_cpu(compiler) for compiler in compilers}
    sources = tmp_path / "csrc"
    sources.mkdir()
    text = (loader.SOURCES / loader.CPU_SOURCE).read_text(encoding="utf-8")
    (sources / loader.CPU_SOURCE).write_text(text + "// changed\n", encoding="utf-8")
    monkeypatch.setattr(loader, "SOURCES", sources)
    built.add(loader.build_cpu(compilers[0]))
    assert len(built) == 3


@pytest.mark.parametrize(
    "body",
    [
        "echo 'error: no such thing' >&2; exit 1",
        'echo "half a library" > "$target"; kill -9 $$',  # killed while writing
        'echo "not a library" > "$target"',  # ends well, but gives nothing that loads
        "true",  # ends well, but gives nothing
    ],
    ids=["error", "killed", "garbage", "nothing"],
)
def test_a_build_that_fails_leaves_nothing(cache: Path, tmp_path: Path, body: str) -> None:
    with pytest.raises(loader.KernelError, match="could not build ms_deform_attn_cpu"):
        loader.build_cpu(_compiler(tmp_path, body))
    assert not _libraries(cache)


def test_the_compilers_words_are_passed_on(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(loader.KernelError, match="no such thing"):
        loader.build_cpu(_compiler(tmp_path, "echo 'error: no such thing' >&2; exit 1"))


def test_flags_that_a_compiler_does_not_know_are_left_out(cache: Path, tmp_path: Path, real_library: Path) -> None:
    refuse = 'for a; do case "$a" in -march=*|-mcpu=*) echo unknown flag >&2; exit 1;; esac; done'
    assert loader.build_cpu(_compiler(tmp_path, f'{refuse}\ncp {real_library} "$target"')).exists()


def test_a_build_that_hangs_is_ended(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BUILD_TIMEOUT", 0.1)
    with pytest.raises(loader.KernelError, match="timed out"):
        loader.build_cpu(_compiler(tmp_path, "exec sleep 60"))
    assert not _libraries(cache)


def test_without_a_compiler_an_earlier_build_is_taken(
    cache: Path, tmp_path: Path, real_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = loader.build_cpu(_compiler(tmp_path, f'cp {real_library} "$target"'))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert loader.find_compiler() is None and loader.build_cpu() == built
    built.unlink()
    with pytest.raises(loader.KernelError, match=r"no C\+\+ compiler was found"):
        loader.build_cpu()


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, real_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "file"))
    with pytest.raises(loader.KernelError, match="set GROUNDING_DINO_CACHE"):
        loader.build_cpu(_compiler(tmp_path, f'cp {real_library} "$target"'))


def test_the_compiler_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = _compiler(tmp_path, "true")
    monkeypatch.setenv("CXX", named)
    assert loader.find_compiler() == named
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert loader.find_compiler() is None


def test_words_that_are_no_mode_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDING_DINO_KERNELS", "fast")
    with pytest.raises(loader.KernelError, match="auto, native, off"):
        loader.kernels_mode()
    monkeypatch.setenv("GROUNDING_DINO_KERNELS", "")
    assert loader.kernels_mode() == "auto"


@pytest.mark.slow
def test_without_a_compiler_the_twin_runs_with_one_warning(tmp_path: Path) -> None:
    environment = {"PATH": "", "CXX": "", "GROUNDING_DINO_CACHE": str(tmp_path)}
    done = _use(environment)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1 and "no C++ compiler" in warnings[0] and "Install a C++ compiler" in warnings[0]
    assert done.stdout.startswith("plain PyTorch")
    silent = _use({**environment, "GROUNDING_DINO_KERNELS": "off"})
    assert silent.returncode == 0 and "WARNING" not in silent.stderr and "switched off" in silent.stdout
    demanded = _use({**environment, "GROUNDING_DINO_KERNELS": "native"})
    assert demanded.returncode == 1 and "KernelError: GROUNDING_DINO_KERNELS=native" in demanded.stderr


@pytest.mark.slow
def test_a_broken_compiler_leaves_the_twin(tmp_path: Path) -> None:
    broken = _compiler(tmp_path, "echo 'internal error' >&2; exit 1")
    done = _use({"CXX": broken, "GROUNDING_DINO_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING") == 1 and "internal error" in done.stderr


@pytest.mark.slow
def test_narrower_registers_give_the_same(tmp_path: Path) -> None:
    """Without -march=native the kernel is built for the oldest processors of the architecture."""
    compiler = loader.find_compiler()
    assert compiler is not None
    drop = 'for a; do shift; case "$a" in -march=*) ;; *) set -- "$@" "$a";; esac; done'
    environment = {"CXX": _compiler(tmp_path, f'{drop}\nexec {compiler} "$@"'), "GROUNDING_DINO_KERNELS": "native"}
    done = _use({**environment, "GROUNDING_DINO_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0 and done.stdout.startswith("native"), done.stderr


@pytest.mark.slow
def test_two_processes_build_once(tmp_path: Path, real_library: Path) -> None:
    compiler = _compiler(tmp_path, f'sleep 2\ncp {real_library} "$target"')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": compiler, "GROUNDING_DINO_CACHE": str(tmp_path / "c")}
    command = [sys.executable, "-c", "from grounding_dino.ops import loader; print(loader.cpu_kernel().path)"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=300)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0] and len(paths) == 1
    assert (tmp_path / "calls").read_text() == "call\n"
    assert _libraries(tmp_path / "c") == [Path(paths.pop().strip())]


@pytest.mark.slow
def test_setting_up_builds_with_the_real_compiler(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GROUNDING_DINO_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "grounding_dino.ops.build"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("CPU kernel: native, built with"), done.stdout + done.stderr
    assert len(_libraries(tmp_path)) == 1


@pytest.mark.slow
def test_the_cuda_kernel_compiles_for_ampere_and_hopper(cache: Path) -> None:
    if loader.find_nvcc() is None:  # then the loader has to say so
        with pytest.raises(loader.KernelError, match="nvcc was not found"):
            loader.build_cuda(["80", "90"])
        return
    library = ctypes.CDLL(str(loader.build_cuda(["80", "90"])))
    loader.declare_cuda(library)
    assert library.gd_cuda_error(0) == b"no error"
    assert library.gd_ms_deform_attn_cuda_forward and library.gd_ms_deform_attn_cuda_backward


def test_without_nvcc_the_loader_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(loader.KernelError, match="nvcc was not found"):
        loader.build_cuda(["90"])
