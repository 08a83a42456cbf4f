"""What a run says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from grounding_dino.engine import environment
from grounding_dino.engine.trainer import Trainer

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


@pytest.fixture
def algorithms_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_runs_on_several_threads_are_equal_bit_for_bit(
    train_cfg: Callable[..., CfgNode], algorithms_as_before: None
) -> None:
    Trainer(train_cfg())
    assert not torch.are_deterministic_algorithms_enabled(), "only where it is asked for"
    states = []
    for output in ("first", "second"):
        trainer = Trainer(train_cfg("SOLVER.DETERMINISTIC_ON", True, output=output))
        torch.set_num_threads(2)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert environment.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_workspace_of_the_users_own_is_kept(monkeypatch: pytest.MonkeyPatch, algorithms_as_before: None) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    environment.make_deterministic()
    assert environment.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
