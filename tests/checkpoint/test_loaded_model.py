"""Models that are built for the weights of a file: without draws, with parameters of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.model_zoo import SHIPPED_MODEL, build_model, load_cfg

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build
from torch import Tensor, nn

OPTIONS = ["MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A model of the shipped configuration with random weights."""
    torch.manual_seed(3)
    cfg = load_cfg(SHIPPED_MODEL, OPTIONS)
    cfg.MODEL.WEIGHTS = ""
    return build_model(cfg)


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that no file holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def ordinarily_loaded(cfg: CfgNode, file: str) -> nn.Module:
    model = build(cfg)
    GroundingCheckpointer(model, ignore=cfg.MODEL.WEIGHTS_IGNORE).load(file, checkpointables=[])
    return model


@pytest.mark.parametrize("ignore", [[], [r"^transformer_decoder", r"relative_position_bias_table"]])
def test_equals_a_model_that_was_drawn_first(trained: nn.Module, tmp_path: Path, ignore: list[str]) -> None:
    file = str(tmp_path / "weights.pth")
    save_checkpoint(file, trained.state_dict())
    cfg = load_cfg(SHIPPED_MODEL, [*OPTIONS, "MODEL.WEIGHTS_IGNORE", ignore])
    torch.manual_seed(11)
    expected = everything(ordinarily_loaded(cfg, file))
    torch.manual_seed(11)
    found = everything(build_model(cfg, file))
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]
    own = trained.state_dict()
    same = [name for name in own if torch.equal(own[name], found[name])]
    assert (len(same) == len(own)) == (not ignore)


def test_a_whole_checkpoint_draws_no_random_number(trained: nn.Module, tmp_path: Path) -> None:
    file = str(tmp_path / "weights.safetensors")
    save_checkpoint(file, trained.state_dict())
    before = torch.get_rng_state()
    build_model(load_cfg(SHIPPED_MODEL, OPTIONS), file)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_parameters_outlive_the_file(trained: nn.Module, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    save_checkpoint(str(file), trained.state_dict())
    model = build_model(load_cfg(SHIPPED_MODEL, OPTIONS), file)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open(file, "r+b") as stream:  # in place, so that every mapping of it sees the change
        stream.write(b"\xff" * os.path.getsize(file))
    file.unlink()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
def test_zip_files_are_mapped_and_legacy_ones_read(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"model": trained.state_dict()}, file, _use_new_zipfile_serialization=not legacy)
    asked: list[bool] = []
    read: Callable[..., Any] = torch.load

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["mmap"])
        return read(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    model = build_model(load_cfg(SHIPPED_MODEL, OPTIONS), file)
    assert asked == [not legacy]
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.state_dict().items())


def test_state_that_is_kept_is_not_mapped(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer keeps the tensors that it is given as its own."""
    optimizer = torch.optim.AdamW(trained.parameters())
    GroundingCheckpointer(trained, str(tmp_path), optimizer=optimizer).save("model_final")
    asked: list[bool] = []
    read: Callable[..., Any] = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: (asked.append(kwargs["mmap"]), read(*args, **kwargs))[1])
    GroundingCheckpointer(trained, str(tmp_path), optimizer=optimizer).load(str(tmp_path / "model_final.pth"))
    assert asked == [False]
