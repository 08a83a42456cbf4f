"""Which models a page offers, under which names, and which of them are kept."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from grounding_dino.web.models import ModelShelf, ServedModel, Stopped, served_models

import pytest
import torch
from torch import nn


def test_names_of_the_command_line(tmp_path: Path) -> None:
    assert [model.name for model in served_models([])] == ["shapes_tiny", "glip_shapes_tiny"]
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    found = served_models([f"shapes_tiny={tmp_path}/a.pth", f"shapes_tiny={tmp_path}/b.pth", "shapes_tiny_panoptic"])
    assert [model.name for model in found] == ["shapes_tiny (a.pth)", "shapes_tiny (b.pth)", "shapes_tiny_panoptic"]
    assert [model.reads_text for model in found] == [True, True, False]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["shapes_tiny=none.pth"], "no weights 'none.pth'"),
        (["shapes_tin"], "shapes_tiny"),
        (["shapes_tiny"] * 2, "two"),
    ],
)
def test_names_that_cannot_be_used(named: list[str], said: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        served_models(named)


def test_the_model_that_was_used_longest_ago_makes_room() -> None:
    loaded: list[str] = []

    def load(model: ServedModel) -> Any:
        loaded.append(model.name)
        return SimpleNamespace(model=nn.Identity())

    shelf = ModelShelf([ServedModel(name, name) for name in "abc"], load, capacity=2)
    for name in "abacab":
        shelf.get(name)
    assert loaded == ["a", "b", "c", "b"] and "a" in shelf and "c" not in shelf


def test_a_running_model_stops_between_its_parts() -> None:
    stop = threading.Event()

    class Second(nn.Sequential):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            raise AssertionError("this part runs")

    class First(nn.Sequential):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            stop.set()
            return super().forward(value)

    model = nn.Sequential(First(nn.Identity()), Second(nn.Identity()))
    shelf = ModelShelf([ServedModel("a", "a")], lambda _: SimpleNamespace(model=model))  # type: ignore[arg-type, return-value]
    shelf.stop_by(stop)
    with pytest.raises(Stopped):
        shelf.get("a").model(torch.zeros(1))
