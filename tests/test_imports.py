"""What importing the package and asking a command for its help bring in, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each takes a tenth of a second to several seconds to import, and is imported where it is used.
HEAVY = ("transformers", "torchvision", "timm", "scipy", "matplotlib", "cv2", "pandas", "peft", "torch._dynamo")
# They measure torch's own operators, and are not for users in a hurry.
WITH_TORCH = {"benchmark.py", "gpu_check.py"}
COMMANDS = [
    ROOT / "train_net.py",
    ROOT / "demo" / "app.py",
    ROOT / "demo" / "demo.py",
    *sorted(path for path in (ROOT / "tools").glob("*.py") if path.name not in WITH_TORCH),
]


def modules_after(code: str) -> set[str]:
    """The names of all modules that a process has imported when `code` ends."""
    report = "import sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_package_alone_imports_nothing_heavy() -> None:
    assert not modules_after("import grounding_dino") & {"torch", "numpy", "detectron2", "pycocotools", *HEAVY}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["grounding_dino.predictor", "grounding_dino.modeling", "grounding_dino.inference"])
def test_models_and_predictors_import_torch_and_little_more(module: str) -> None:
    assert not modules_after(f"import {module}") & set(HEAVY)


@pytest.mark.slow
def test_a_model_with_text_does_without_transformers() -> None:
    """Built from a file and used, and described as a training's log begins."""
    code = """
import grounding_dino.engine
from grounding_dino.predictor import load_predictor
from detectron2.utils.collect_env import collect_env_info
import numpy as np
predictor = load_predictor(device="cpu")
predictor(np.zeros((64, 64, 3), dtype=np.uint8), categories=["blue star"])
collect_env_info()
"""
    assert "transformers" not in modules_after(code)


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_help_does_not_wait_for_torch(script: Path) -> None:
    code = (
        f"import runpy, sys\nsys.argv = [{str(script)!r}, '--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code"
    )
    assert not modules_after(code) & {"torch", "numpy", "cv2"}
