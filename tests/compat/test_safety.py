"""Files never run code in the compact Detectron2. Upstream trusts them, so there is nothing to test there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import detectron2
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from safetensors.torch import save_file
from torch import nn

pytestmark = pytest.mark.skipif("+compat" not in detectron2.__version__, reason="upstream trusts its files")


class Evil:
    """Would make the folder `path` when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_checkpoint_does_not_run_code(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model.{suffix}"
    content = {"model": {"weight": Evil(tmp_path / "made")}}
    if suffix == "pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match="safety"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(file))
    assert not (tmp_path / "made").exists()


def test_config_does_not_run_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ValueError, match=r"evil\.yaml"):
        get_cfg().merge_from_file(str(file), allow_unsafe=True)
    assert not (tmp_path / "made").exists()


def test_python_file_is_not_a_config(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("raise SystemExit(3)\n")
    with open(file) as opened, pytest.raises(ValueError, match="YAML"):
        type(get_cfg()).load_cfg(opened)


def test_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save({"model": nn.Linear(30, 30).state_dict()}, file)
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"model\.pth.*damaged"):
        DetectionCheckpointer(nn.Linear(30, 30)).load(str(file))


def test_safetensors_are_read(tmp_path: Path) -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    DetectionCheckpointer(target).load(str(tmp_path / "model.safetensors"))
    assert torch.equal(source.weight, target.weight)


def test_caffe2_weights_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"conv1_w": 1}))
    with pytest.raises(ValueError, match="torchvision"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "R-50.pkl"))


def test_config_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(ValueError, match="VERSION 1"):
        get_cfg().merge_from_file(str(tmp_path / "old.yaml"))
