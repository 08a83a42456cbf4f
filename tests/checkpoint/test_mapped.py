"""Loading from files that are mapped into memory."""

from __future__ import annotations

import sys
from pathlib import Path

from grounding_dino.checkpoint import mapped
from grounding_dino.checkpoint.mapped import load_and_release, mappings_of

import pytest
import torch
from torch import Tensor, nn

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MIB = 1 << 20


def saved(path: Path, layers: int = 8) -> nn.Sequential:
    """A model of 1 MiB a layer, whose weights are in the file."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(layers)))
    torch.save(model.state_dict(), path)
    return model


def mapped_bytes(path: Path) -> int:
    """Of the file, in this process's memory."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


def read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True, mmap=True)


@LINUX
def test_the_file_leaves_memory_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pth"
    model = saved(path)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = read(path)
    assert sum(float(tensor.sum()) for tensor in state.values()) != 0  # looks at every page
    assert mapped_bytes(path) >= 8 * MIB
    monkeypatch.setattr(mapped, "_PART_BYTES", 2 * MIB)
    model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in expected.items()})
    seen = []
    model[5].register_load_state_dict_post_hook(lambda *_: seen.append(mapped_bytes(path)))
    load_and_release(model, state, str(path))
    assert seen[0] <= 5 * MIB and mapped_bytes(path) < MIB
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(state["7.weight"], expected["7.weight"])  # comes back from the file
    assert not model[0]._load_state_dict_post_hooks


@LINUX
def test_what_was_written_into_a_mapping_is_kept(tmp_path: Path) -> None:
    """A mapping is private: writes stay in memory, and would be lost with its pages."""
    path = tmp_path / "model.pth"
    model, trained = saved(path), saved(path)
    trained.load_state_dict(read(path), assign=True)  # its weights are the mapping
    state = read(path)
    with torch.no_grad():
        for weight in (*trained.parameters(), state["0.weight"], state["7.weight"]):
            weight.add_(1)
    expected = [weight.clone() for weight in trained.parameters()]
    load_and_release(model, state, str(path))
    assert all(torch.equal(weight, kept) for weight, kept in zip(trained.parameters(), expected))
    assert torch.equal(model[7].weight, expected[7]) and torch.equal(state["7.weight"], expected[7])


def test_files_that_are_not_mapped_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    model = saved(path, 1)
    state = torch.load(path, weights_only=True)
    assert mappings_of(str(path), state) == mappings_of(str(tmp_path / "missing.pth"), state) == []
    load_and_release(model, state, str(path))
    assert torch.equal(state["0.weight"], model.state_dict()["0.weight"])


@LINUX
def test_other_mappings_of_the_file_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    saved(path, 1)
    mine, other = read(path), read(path)
    (place,) = mappings_of(str(path), mine)
    assert place not in mappings_of(str(path), other)
