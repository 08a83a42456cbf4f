"""Saving, loading and resuming; names matched by their ends."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.solver.lr_scheduler import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))


@pytest.fixture(autouse=True)
def messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loggers were set up before."""
    for name in ("fvcore", "detectron2"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


def state_equals(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_save_and_resume_with_training_state(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    scheduler = LRMultiplier(optimizer, ConstantParamScheduler(1.0), 10)
    model.head(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    scheduler.step()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer, scheduler=scheduler)
    checkpointer.save("model_0000003", iteration=3)

    other = Model()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    other_scheduler = LRMultiplier(other_optimizer, ConstantParamScheduler(1.0), 10)
    resumed = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer, scheduler=other_scheduler)
    assert resumed.has_checkpoint()
    extra = resumed.resume_or_load("", resume=True)
    assert extra["iteration"] == 3
    assert state_equals(model, other)
    assert other_optimizer.param_groups[0]["lr"] == 0.5
    assert other_scheduler.last_epoch == 1
    assert len(other_optimizer.state_dict()["state"]) == 2


def test_loading_without_resuming_takes_the_model_only(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("saved")
    other = Model()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    checkpointer = DetectionCheckpointer(other, str(tmp_path / "new"), optimizer=other_optimizer)
    checkpointer.resume_or_load(str(tmp_path / "saved.pth"), resume=True)
    assert state_equals(model, other)
    assert other_optimizer.param_groups[0]["lr"] == 0.1


def test_empty_path_loads_nothing() -> None:
    assert DetectionCheckpointer(Model()).load("") == {}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises((OSError, AssertionError), match=r"nothing\.pth"):
        DetectionCheckpointer(Model()).load(str(tmp_path / "nothing.pth"))


def test_not_saving_to_disk(tmp_path: Path) -> None:
    DetectionCheckpointer(Model(), str(tmp_path), save_to_disk=False).save("model")
    assert not list(tmp_path.iterdir())


def test_pixel_mean_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = Model().state_dict()
    del state["pixel_mean"]
    torch.save({"model": state}, tmp_path / "model.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(Model()).load(str(tmp_path / "model.pth"))
    assert not caplog.messages


@pytest.mark.parametrize("in_file", [True, False])
def test_names_matched_by_their_ends(tmp_path: Path, in_file: bool) -> None:
    source = Model()
    arrays = {name: value.numpy() for name, value in source.backbone.state_dict().items()}
    content: dict[str, object] = {"model": arrays, "__author__": "someone"}
    if in_file:
        content["matching_heuristics"] = True
    file = tmp_path / "backbone.pkl"
    file.write_bytes(pickle.dumps(content))
    target = Model()
    head = target.head.weight.clone()
    DetectionCheckpointer(target).load(str(file) if in_file else f"{file}?matching_heuristics=True")
    assert state_equals(source.backbone, target.backbone)
    assert torch.equal(target.head.weight, head)


def test_arrays_of_a_pickle(tmp_path: Path) -> None:
    source, target = Model(), Model()
    arrays = {name: value.numpy() for name, value in source.state_dict().items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    DetectionCheckpointer(target).load(str(tmp_path / "model.pkl"))
    assert state_equals(source, target)


def test_other_shapes_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = Model().state_dict()
    state["head.weight"] = torch.zeros(5, 4)
    torch.save({"model": state}, tmp_path / "model.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(Model()).load(str(tmp_path / "model.pth"))
    assert any("head.weight" in message for message in caplog.messages)
