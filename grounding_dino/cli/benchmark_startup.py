"""`tools/benchmark.py --startup`: how long a user waits before the first picture, in processes of their own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.tables import format_table

# Each prints its seconds by name. What is imported before a clock starts is not part of its time.
_IMPORTS = """
import json, time
start = time.perf_counter(); import torch; torch_ready = time.perf_counter()
import grounding_dino; package = time.perf_counter()
import grounding_dino.predictor, grounding_dino.modeling; models = time.perf_counter()
print(json.dumps({
    "import torch": torch_ready - start,
    "import grounding_dino, after torch": package - torch_ready,
    "predictor and models, after that": models - package,
}))
"""
_LOAD = """
import json, sys, time
import grounding_dino.modeling
from grounding_dino.model_zoo import build_model, load_cfg
name, file = sys.argv[1:]
cfg = load_cfg(name, ["MODEL.DEVICE", "cpu"])
start = time.perf_counter(); build_model(cfg, file)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""
_WRITE = """
import sys
from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.model_zoo import build_model, load_cfg
cfg = load_cfg(sys.argv[1], ["MODEL.DEVICE", "cpu"]); cfg.MODEL.WEIGHTS = ""
state = build_model(cfg).state_dict()
for file in sys.argv[2:]:
    save_checkpoint(file, state)
"""
_HELP = "from grounding_dino.cli.demo import main; main(['--help'])"


def measure_startup(config: str, repeats: int) -> list[dict[str, Any]]:
    """Records of a name and the seconds of each round, of which the first is left out: it fills the system's caches.

    Checkpoints of `config` with random weights are written to a temporary folder, and build a model there.

    Raises:
        ValueError: a process ends with an error.
    """
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="startup_") as folder:
        files = [Path(folder) / f"weights{suffix}" for suffix in (".pth", ".safetensors")]
        _run(_WRITE, config, *map(str, files))
        for turn in range(repeats + 1):
            found = {**_json_of(_IMPORTS), "demo.py --help, the whole process": _wall(_HELP)}
            for file in files:
                megabytes = file.stat().st_size / 1e6
                name = f"{config} built and loaded from {megabytes:.0f} MB {file.suffix}"
                found[name] = _json_of(_LOAD, config, str(file))["seconds"]
            for name, time_ in found.items():
                if turn:
                    seconds.setdefault(name, []).append(time_)
    return [{"name": name, "seconds": times} for name, times in seconds.items()]


def startup_table(records: Sequence[dict[str, Any]]) -> str:
    """Medians and ranges, as text."""
    rows = [
        (r["name"], f"{statistics.median(r['seconds']):.2f} s", f"{min(r['seconds']):.2f} to {max(r['seconds']):.2f}")
        for r in records
    ]
    return format_table(("start-up", "median", "range"), rows)


def _json_of(code: str, *arguments: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(_run(code, *arguments).splitlines()[-1])
    return found


def _wall(code: str) -> float:
    start = time.perf_counter()
    _run(code)
    return time.perf_counter() - start


def _run(code: str, *arguments: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise ValueError(f"a process of the start-up benchmark failed: {words}")
    return done.stdout
