"""`tools/doctor.py`: what this installation consists of, and the first thing to fix."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import grounding_dino
from grounding_dino.cli.arguments import program

DISTRIBUTION = "grounding-dino-detectron2"
PACKAGES = ("torch", "torchvision", "tokenizers", "timm", "fvcore", "numpy")
PYTHON_TESTED = ((3, 10), (3, 13))
VOCABULARY_MD5 = "64800d5d8528ce344256daf115d4965e"  # bert-base-uncased, as published
REINSTALL = "Install this project again: pip install --force-reinstall . (or -e . in a checkout)."


class Check(NamedTuple):
    """One line of the report; `remedy` is empty where all is well."""

    name: str
    text: str
    remedy: str = ""


def requirements() -> dict[str, str]:
    """Package -> version specifier that this project declares ("" for any)."""
    found = (re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)", line) for line in _declared() if "extra ==" not in line)
    return {match.group(1).lower(): match.group(2).strip() for match in found if match}


def _declared() -> list[str]:
    """The requirements as metadata have them; those of an extra end in `; extra == "name"`.

    A checkout's own file, which says what its code needs, comes before what was once installed of it.
    """
    file = Path(grounding_dino.__file__).resolve().parent.parent / "pyproject.toml"
    if not file.is_file():
        try:
            return importlib.metadata.requires(DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            return []
    plain, _, optional = file.read_text(encoding="utf-8").partition("[project.optional-dependencies]")
    block = re.search(r"^dependencies = \[(.*?)^\]", plain, re.DOTALL | re.MULTILINE)
    lines = re.findall(r'"([^"]+)"', block.group(1)) if block else []
    pattern = re.compile(r"^([\w-]+) = \[(.*?)\](?: *#[^\n]*)?$", re.DOTALL | re.MULTILINE)
    for name, body in pattern.findall(optional.partition("\n[")[0]):
        lines += [f'{package}; extra == "{name}"' for package in re.findall(r'"([^"]+)"', body)]
    return lines


def check_python() -> list[Check]:
    """The interpreter's version."""
    low, high = (".".join(map(str, version)) for version in PYTHON_TESTED)
    tested = PYTHON_TESTED[0] <= sys.version_info[:2] <= PYTHON_TESTED[1]
    text = f"{platform.python_version()} ({'in' if tested else 'outside'} the tested range {low} to {high})"
    return [Check("Python", f"{text}, {sys.executable}", "" if tested else f"Use Python {low} to {high}.")]


def check_packages(wanted: dict[str, str] | None = None) -> list[Check]:
    """Versions of the packages that matter most, against `wanted` (default: what the project declares)."""
    wanted = requirements() if wanted is None else wanted
    checks = []
    for name in PACKAGES:
        specifier = wanted.get(name, "")
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "not installed", f'pip install "{name}{specifier}"'))
            continue
        if _fits(version, specifier):
            checks.append(Check(name, f"{version} (in the tested range: {specifier or 'any'})"))
        else:
            remedy = f'pip install "{name}{specifier}"'
            checks.append(Check(name, f"{version} (outside the tested range: {specifier})", remedy))
    return checks


def extras() -> dict[str, list[str]]:
    """Extra -> the packages that it installs, as the project declares them; without `dev`."""
    found: dict[str, list[str]] = {}
    for line in _declared():
        package, _, condition = line.partition(";")
        match = re.search(r"extra == ['\"]([\w-]+)['\"]", condition)
        name = re.match(r"[A-Za-z0-9._-]+", package)
        if match and name and match.group(1) != "dev":
            found.setdefault(match.group(1), []).append(name.group())
    return found


def check_extras() -> list[Check]:
    """What is installed of the optional packages, a line an extra; none of them has to be."""
    checks = []
    for extra, packages in sorted(extras().items()):
        versions = {package: _version(package) for package in packages}
        missing = [package for package, version in versions.items() if not version]
        if missing:
            text = f'not installed ({", ".join(missing)}): pip install "{DISTRIBUTION}[{extra}]"'
        else:
            text = ", ".join(f"{package} {version}" for package, version in versions.items())
        checks.append(Check(f"extra {extra}", text))
    return checks


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _fits(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def check_detectron2() -> list[Check]:
    """Which Detectron2 `import detectron2` gives."""
    from grounding_dino.engine.environment import detectron2_in_use

    return [Check("Detectron2", detectron2_in_use().removeprefix("detectron2 "))]


def check_kernels() -> list[Check]:
    """The native kernels in use, and the compilers (NVRTC is one)."""
    from grounding_dino.ops import kernel_status, loader, nvrtc

    checks = [Check(*row) for row in kernel_status()]
    found = (loader.find_compiler(), loader.find_nvcc(), nvrtc.find_library())
    compilers = [str(path) for path in found if path]
    return [*checks, Check("compilers", ", ".join(compilers) or "none found")]


def check_devices() -> list[Check]:
    """Processor and GPUs."""
    import torch

    checks = [Check("CPU", f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")]
    if not torch.cuda.is_available():
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
        return [*checks, Check("GPU", f"none seen ({built}); models run on the CPU")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        checks.append(Check(f"GPU {index}", f"{text}, CUDA {torch.version.cuda}"))
    return checks


def check_cache() -> list[Check]:
    """The folder of kernels and downloads: where, how full, whether it can be written."""
    from grounding_dino.ops.loader import cache_root

    folder = cache_root()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return [Check("cache", f"{folder} cannot be written", "Set GROUNDING_DINO_CACHE to a folder of yours.")]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return [Check("cache", f"{folder} ({size / 2**20:.1f} MiB)" if folder.exists() else f"{folder} (not there yet)")]


def check_vocabulary(file: Path | None = None) -> list[Check]:
    """The tokenizer's vocabulary against its published checksum."""
    from grounding_dino.text.tokenizer import ASSETS, DEFAULT_VOCABULARY

    file = file or ASSETS / DEFAULT_VOCABULARY
    if not file.is_file():
        return [Check("vocabulary", f"{file} is missing", REINSTALL)]
    digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != VOCABULARY_MD5:
        return [Check("vocabulary", f"{file} has checksum {digest}, not {VOCABULARY_MD5}", REINSTALL)]
    return [Check("vocabulary", f"{file.name}, checksum right")]


def check_shipped_model(folder: Path | None = None) -> list[Check]:
    """The checkpoint that `load_predictor()` takes by default."""
    from grounding_dino.model_zoo import ASSETS, SHIPPED_MODEL

    file = (folder or ASSETS) / f"{SHIPPED_MODEL}.safetensors"
    if not file.is_file():
        return [Check("shipped model", f"{file} is missing", REINSTALL)]
    return [Check("shipped model", f"{file.name}, {file.stat().st_size / 1e6:.1f} MB")]


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    check_python,
    check_packages,
    check_detectron2,
    check_kernels,
    check_devices,
    check_cache,
    check_vocabulary,
    check_shipped_model,
    check_extras,
)


def run_checks(checks: Sequence[Callable[[], list[Check]]] = CHECKS) -> list[Check]:
    """All rows; a check that fails itself becomes a row that says so."""
    rows = []
    for check in checks:
        try:
            rows += check()
        except Exception as error:  # whatever is broken, the report goes on
            name = check.__name__.removeprefix("check_").replace("_", " ")
            rows.append(Check(name, f"{type(error).__name__}: {error}", REINSTALL))
    return rows


def build_parser() -> argparse.ArgumentParser:
    """No options."""
    return argparse.ArgumentParser(prog=program("doctor.py"), description=__doc__)


def main(argv: Sequence[str] | None = None, checks: Sequence[Callable[[], list[Check]]] = CHECKS) -> int:
    """Prints the rows, then "ok" and returns 0, or the first thing to fix and returns 1."""
    build_parser().parse_args(argv)
    rows = run_checks(checks)
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{'!' if row.remedy else ' '} {row.name.ljust(width)}  {row.text}")
    first = next((row for row in rows if row.remedy), None)
    print(f"fix first: {first.name}: {first.remedy}" if first else "ok")
    return int(first is not None)
