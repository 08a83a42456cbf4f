"""Metrics for Weights & Biases, by the real package in its offline mode."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from grounding_dino.engine.trainer import Trainer
from grounding_dino.engine.writers import WandbWriter

import pytest
import wandb
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

ConfigBuilder = Callable[..., CfgNode]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "SILENT": "true", "DISABLE_GIT": "true", "DISABLE_CODE": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def logged(folder: str) -> bytes:
    """What the offline runs below a folder hold: metrics stand in it as they do in JSON."""
    return b"".join(file.read_bytes() for file in sorted(Path(folder).rglob("*.wandb")))


@pytest.mark.slow
def test_a_training_is_logged_offline_and_taken_up_again(train_cfg: ConfigBuilder, offline: None) -> None:
    opts = ("SOLVER.WANDB_PROJECT", "squares", "SOLVER.MAX_ITER")
    cfg = train_cfg(*opts, 1)
    Trainer(cfg).train()
    run = Path(cfg.OUTPUT_DIR, "wandb_run.txt").read_text()
    assert run.strip() and list(Path(cfg.OUTPUT_DIR, "wandb").glob(f"offline-run-*-{run.strip()}"))
    again = Trainer(train_cfg(*opts, 2))
    again.resume_or_load(True)
    again.train()
    assert Path(cfg.OUTPUT_DIR, "wandb_run.txt").read_text() == run
    wandb.teardown()  # as at the end of a process: its service writes the last rows now
    data = logged(cfg.OUTPUT_DIR)
    metrics = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in metrics] == [0, 1]
    for line in metrics:
        for name in ("total_loss", "loss_giou", "images_per_second"):
            assert name.encode() in data and json.dumps(line[name]).encode() in data


def test_nothing_is_begun_before_there_is_something_to_write(train_cfg: ConfigBuilder) -> None:
    cfg = train_cfg("SOLVER.WANDB_PROJECT", "squares")
    writer = WandbWriter(cfg, resumes=lambda: False)
    with EventStorage():
        writer.write()
    writer.close()
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_a_missing_package_is_said_at_the_start(train_cfg: ConfigBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    Trainer(train_cfg())
    with pytest.raises(
        ValueError, match="SOLVER.WANDB_PROJECT is 'squares', but the package wandb is not installed; pip"
    ):
        Trainer(train_cfg("SOLVER.WANDB_PROJECT", "squares"))
