"""What a run says about itself."""

from __future__ import annotations

from grounding_dino.engine import environment

import pytest
import torch
from detectron2.config import CfgNode


def test_the_environment_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        environment.log_environment()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("using detectron2 ")
    assert "from /" in caplog.messages[0] or ":\\" in caplog.messages[0]
    assert f"torch {torch.__version__}; CPU kernel: " in caplog.messages[0]


def test_a_missing_gpu_is_replaced_by_the_cpu(tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_cfg.MODEL.DEVICE = "cuda:1"
    environment.prefer_available_device(tiny_cfg)
    assert tiny_cfg.MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tiny_cfg.MODEL.DEVICE = "cuda"
    environment.prefer_available_device(tiny_cfg)
    assert tiny_cfg.MODEL.DEVICE == "cuda"


def test_cores_are_shared_between_processes(tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    environment.share_cpu_cores(tiny_cfg)
    assert given == [], "a process alone keeps torch's choice"
    monkeypatch.setattr(environment, "cpu_cores", lambda: 7)
    for processes in (2, 16):
        monkeypatch.setattr(environment.comm, "get_local_size", lambda processes=processes: processes)
        environment.share_cpu_cores(tiny_cfg)
    assert given == [3, 1]
    tiny_cfg.MODEL.DEVICE = "cuda"
    environment.share_cpu_cores(tiny_cfg)
    assert given == [3, 1]
