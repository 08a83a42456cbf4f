"""The distribution: what it declares, what its wheel holds, and that the wheel alone detects without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import grounding_dino
from grounding_dino.cli.doctor import PYTHON_TESTED, requirements

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "grounding_dino"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
SETUP = "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"
PICTURES = "demo/pictures/"
NOT_PACKED = {".md", ".log", ".so", ".pyc"}  # of the files below grounding_dino/
# What an installed copy needs besides Python code.
NEEDED = (
    "grounding_dino/py.typed",
    "grounding_dino/assets/bert-base-uncased-vocab.txt",
    "grounding_dino/assets/glip_shapes_tiny.safetensors",
    "grounding_dino/assets/shapes_tiny.safetensors",
    "grounding_dino/assets/shapes_tiny_panoptic.safetensors",
    "grounding_dino/configs/Base-GroundingDINO.yaml",
    "grounding_dino/configs/grounding_dino/shapes_tiny.yaml",
    "grounding_dino/compat/detectron2/__init__.py",
    "grounding_dino/ops/csrc/ms_deform_attn_cpu.cpp",
    "grounding_dino/ops/csrc/ms_deform_attn_cuda.cu",
    "grounding_dino/ops/csrc/ms_deform_attn_cuda.cuh",
)
STARS = {  # demo/pictures/stars.jpg: x, y, width, height as rendered
    "blue star": (89, 51, 76, 76),
    "black star": (176, 138, 135, 122),
    "red cross": (78, 262, 86, 80),
    "brown ring": (16, 112, 85, 91),
    "purple circle": (201, 288, 55, 52),
}

DETECT = """
import json, os, socket, sys

def refuse(*arguments, **options):
    raise OSError("this test has no network")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import grounding_dino
found = grounding_dino.load_predictor()(sys.argv[1], categories=sys.argv[2:])
import detectron2
result = {
    "folders": [os.path.dirname(grounding_dino.__file__), os.path.dirname(detectron2.__file__)],
    "labels": list(found.labels),
    "boxes": found.pred_boxes.tensor.tolist(),
}
print(json.dumps(result))
"""


def test_python_versions_are_one_range():
    low, high = PYTHON_TESTED
    requires = SpecifierSet(re.search(r'^requires-python = "(.*)"', PYPROJECT, re.MULTILINE).group(1))
    assert f"{low[0]}.{low[1]}" in requires and f"{low[0]}.{low[1] - 1}" not in requires
    assert f"{high[0]}.{high[1]}" in requires
    assert f"{low} <= v <= {high}" in (ROOT / "Makefile").read_text()
    assert f'target-version = "py{low[0]}{low[1]}"' in PYPROJECT


def test_the_version_is_said_once_and_the_documents_follow_it():
    assert 'dynamic = ["version"]' in PYPROJECT and "grounding_dino.__version__" in PYPROJECT
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", re.MULTILINE)
    newest = heading.search((ROOT / "CHANGELOG.md").read_text()).groups()
    assert newest == (grounding_dino.__version__, str(citation["date-released"]))
    assert citation["version"] == grounding_dino.__version__


def test_the_citation_has_what_its_format_demands():
    """Of cff-version 1.2.0: https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema.json"""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    for entry in (citation, *citation["references"]):
        assert entry["title"] and entry["type"] in ("software", "article") and entry["authors"]
        assert all(a.keys() == {"name"} or a.keys() == {"family-names", "given-names"} for a in entry["authors"])
    assert citation["license"] == re.search(r'^license = "(.*)"', PYPROJECT, re.MULTILINE)[1]


def test_what_extras_ask_for_the_tests_have():
    """With nothing skipped: what an extra names, `dev` names in the same words."""
    block = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    found = re.findall(r"^([\w-]+) = \[(.*?)\](?: *#[^\n]*)?$", block, re.MULTILINE | re.DOTALL)
    options = {name: set(re.findall(r'"([^"]+)"', body)) for name, body in found}
    assert "hub" in options
    assert not {name: wanted - options["dev"] for name, wanted in options.items() if wanted - options["dev"]}


BROUGHT_BY = {  # what is imported, and comes with something that is declared
    **dict.fromkeys(("fastapi", "gradio_client", "httpx", "uvicorn"), "gradio"),
    "mkdocs": "mkdocs-material",
    "google": "onnx",  # protobuf
    "onnx_ir": "onnxscript",
}


def test_what_is_imported_is_declared():
    """Else a test passes where somebody once installed the package by hand, and fails in a fresh environment."""
    options = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    dev = re.search(r"^dev = \[(.*?)^\]", options, re.MULTILINE | re.DOTALL)[1]
    wanted = requirements().keys() | {re.split("[^\\w-]", line)[0] for line in re.findall(r'"([^"]+)"', dev)}
    declared = {name.lower().replace("_", "-") for name in wanted}
    files = [file for folder in ("grounding_dino", "tests", "docs") for file in (ROOT / folder).rglob("*.py")]
    text = "\n".join(file.read_text() for file in files if "reference" not in file.parts)
    imported = set(re.findall(r"^ *(?:from|import) +([A-Za-z_]\w*)", text, re.MULTILINE)) - {"grounding_dino"}
    owners = {name: dists for name, dists in packages_distributions().items() if name in imported}
    assert {"torch", "gradio"} <= owners.keys()
    missing = {
        name: dists
        for name, dists in owners.items()
        if not {dist.lower().replace("_", "-") for dist in [BROUGHT_BY.get(name), *dists] if dist} & declared
    }
    assert not {name for name in missing if name != "detectron2"}


def test_nobody_owns_the_name_detectron2():
    """On the index: whoever takes it would be installed with us."""
    assert not re.search(r'^\s*"detectron2', PYPROJECT, re.MULTILINE)


def test_dependencies_have_lower_bounds():
    wanted = requirements()
    assert {"torch", "torchvision", "tokenizers", "timm"} <= wanted.keys()
    assert all(">=" in specifier for specifier in wanted.values())


def test_transformers_is_for_those_who_ask():
    """Models run without it; only Hugging Face folders, and comparisons with it, need it."""
    needed, options = PYPROJECT.split("[project.optional-dependencies]")
    assert '"transformers' not in needed
    (declared,) = set(re.findall(r'"(transformers[^"]*)"', options))  # in all options alike
    assert ">=" in declared


def test_python_files_are_in_packages():
    """A folder whose name is no identifier is silently left out of a wheel."""
    folders = {file.parent.relative_to(ROOT) for file in PACKAGE.rglob("*.py")}
    assert not [folder for folder in folders if not all(part.isidentifier() for part in folder.parts)]


def packed_files():
    """What belongs into the wheel, by its name there."""
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    names = {str(file.relative_to(ROOT)) for file in files if file.suffix not in NOT_PACKED}
    names |= {f"grounding_dino/example_pictures/{file.name}" for file in (ROOT / "demo" / "pictures").iterdir()}
    return names | {f"grounding_dino/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.yaml")}


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the distribution is built from, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in SETUP:
        shutil.copy(ROOT / name, folder)
    for name in ("grounding_dino", "configs", "demo/pictures", "tests/cli"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--wheel-dir", str(folder), str(source)])
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert set(NEEDED) <= names
    assert names == packed_files()
    assert wheel.name.startswith(f"grounding_dino_detectron2-{grounding_dino.__version__}-py3-none-any")
    assert wheel.stat().st_size < 32e6  # three small models (14, 6 and 12 MB) and the vocabulary


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(source, wheel, tmp_path):
    build = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    run([sys.executable, "-c", build, str(tmp_path)], cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    for inside, outside in (("grounding_dino/configs/", "configs/"), ("grounding_dino/example_pictures/", PICTURES)):
        packed = {name.replace(inside, outside) for name in packed}
    assert packed <= names
    assert set(SETUP) <= names


def without_network():
    """What to put before a command so that it has no network at all; nothing where the system does not allow that."""
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return []


def overlap(box, truth):
    x, y, width, height = truth
    shared = (min(box[2], x + width) - max(box[0], x)), (min(box[3], y + height) - max(box[1], y))
    common = max(shared[0], 0) * max(shared[1], 0)
    return common / ((box[2] - box[0]) * (box[3] - box[1]) + width * height - common)


def environment_with(wheel, folder, *search):
    """An environment of nothing but the wheel, and of the packages in the folders `search`; its interpreter."""
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = str(folder / "bin" / "python")
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]).strip()
    # .pth files in a folder that is named by one are not read, so an editable installation there stays out of the way
    Path(site, "others.pth").write_text("\n".join(search))
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)])
    return python


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with the wheel and this one's torch and other packages."""
    return environment_with(wheel, tmp_path_factory.mktemp("installed"), sysconfig.get_paths()["purelib"])


def surroundings(tmp_path):
    """Environment variables without a path to the checkout, or to a model hub."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "PYTHON"))
    }
    return {**kept, "GROUNDING_DINO_CACHE": str(tmp_path / "cache")}


@pytest.mark.slow
def test_installed_copy_detects_from_another_folder_without_network(installed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture = str(ROOT / "demo" / "pictures" / "stars.jpg")
    command = [*without_network(), installed, "-c", DETECT, picture, *STARS]
    result = json.loads(run(command, cwd=elsewhere, env=surroundings(tmp_path)).splitlines()[-1])
    prefix = str(Path(installed).parents[1])
    assert all(folder.startswith(prefix) for folder in result["folders"])
    found = {
        name
        for name, box in zip(result["labels"], result["boxes"], strict=True)
        if name in STARS and overlap(box, STARS[name]) >= 0.5
    }
    assert len(found) >= 4, f"of {sorted(STARS)} only {sorted(found)} were found"


@pytest.mark.slow
def test_installed_command_runs_the_demo_in_an_empty_folder(installed, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [*without_network(), str(Path(installed).with_name("grounding-dino")), "demo", "--example"]
    environment = {**surroundings(tmp_path), "GROUNDING_DINO_KERNELS": "off"}
    output = run([*command, "--output", "out", "--json", "found.json"], cwd=empty, env=environment)
    assert "blue star" in output
    pictures = {file.name for file in (ROOT / "demo" / "pictures").iterdir()}
    assert {file.name for file in (empty / "out").iterdir()} == pictures
    assert len(json.loads((empty / "found.json").read_text())) == len(pictures)


USER_PROGRAM = """
from grounding_dino import GroundingPredictor, load_predictor
from grounding_dino.hub import ModelCard

predictor: GroundingPredictor = load_predictor("shapes_tiny", device="cpu")
reveal_type(predictor.classes)
reveal_type(ModelCard("apache-2.0", "drawn shapes").results)
load_predictor(device=3)
"""


@pytest.mark.slow
def test_type_checkers_see_the_types_of_the_installed_package(wheel, tmp_path):
    python = environment_with(wheel, tmp_path / "bare")  # without torch, whose types would take a minute
    (tmp_path / "program.py").write_text(USER_PROGRAM)
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        python,
        "--ignore-missing-imports",
        "--no-error-summary",
    ]
    done = subprocess.run(
        [*mypy, "program.py"], capture_output=True, text=True, cwd=tmp_path, env=surroundings(tmp_path)
    )
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert len(lines) == 3, done.stdout + done.stderr
    assert "tuple[str, ...] | None" in lines[0] and "Mapping[str, float]" in lines[1]
    assert 'incompatible type "int"; expected "str | None"' in lines[2]
