"""Event storage, its writers, and logging."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)


def test_storage_is_found_inside_its_context() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        get_event_storage()
    with EventStorage(3) as outer:
        with EventStorage(7) as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
        assert (outer.iter, inner.iteration) == (3, 7)


def test_scalars_and_their_history() -> None:
    with EventStorage(10) as storage:
        for value in (4.0, 1.0, 2.0):
            storage.put_scalar("loss", value)
            storage.put_scalars(lr=value, smoothing_hint=False)
            storage.step()
    assert [value for value, _ in storage.history("loss").values()] == [4, 1, 2]
    assert storage.latest() == {"loss": (2.0, 12), "lr": (2.0, 12)}
    assert storage.latest_with_smoothing_hint(3)["loss"] == (2.0, 12)
    assert storage.latest_with_smoothing_hint(2)["loss"] == (1.5, 12)
    assert storage.smoothing_hints() == {"loss": True, "lr": False}
    assert set(storage.histories()) == {"loss", "lr"}
    with pytest.raises(KeyError):
        storage.history("other")


def test_samples_are_counted_by_iteration() -> None:
    with EventStorage() as storage:
        for iteration in (0, 5, 10, 11):
            storage.put_scalar("ap", 1.0, cur_iter=iteration)
    assert [storage.count_samples("ap", window) for window in (1, 2, 7, 20)] == [1, 2, 3, 4]


def test_names_in_a_scope() -> None:
    with EventStorage() as storage:
        with storage.name_scope("val"):
            storage.put_scalar("loss", 1.0)
        storage.put_scalar("loss", torch.tensor(2.0))
    assert storage.latest() == {"val/loss": (1.0, 0), "loss": (2.0, 0)}


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(file))
        storage.put_scalars(loss=3.0, lr=0.1)
        writer.write()
        storage.step()
        storage.put_scalar("loss", 1.0)
        writer.write()
        writer.write()  # nothing new
        writer.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"iteration": 0, "loss": 3.0, "lr": 0.1}, {"iteration": 1, "loss": 2.0}]


def test_progress_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO), EventStorage(1) as storage:
        storage.put_scalars(total_loss=1.25, time=2.0, data_time=0.5, lr=1e-3)
        CommonMetricPrinter(max_iter=11).write()
    line = caplog.messages[-1]
    for part in ("eta: 0:00:18", "iter: 1", "total_loss: 1.25", "data_time: 0.5000", "lr: 0.001"):
        assert part in line


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalar("loss", 3.0)
        storage.put_image("picture", torch.zeros(3, 4, 4, dtype=torch.uint8))
        storage.put_histogram("weights", torch.arange(10.0), bins=5)
        writer.write()
        assert not storage._vis_data and not storage._histograms
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("loss")] == [3.0]
    assert events.Images("picture")[0].width == 4
    assert events.Histograms("weights")[0].histogram_value.num == 10


def test_unused_tensorboard_writes_nothing(tmp_path: Path) -> None:
    TensorboardXWriter(str(tmp_path / "never")).close()
    assert not (tmp_path / "never").exists()


def test_logger_writes_a_file_a_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = setup_logger(str(tmp_path), name="contract.main", abbrev_name="cm", color=False)
    assert setup_logger(str(tmp_path), name="contract.main", abbrev_name="cm", color=False) is logger
    logging.getLogger("contract.main.part").info("hello")
    setup_logger(str(tmp_path), distributed_rank=1, name="contract.other").info("there")
    assert (tmp_path / "log.txt").read_text().count("hello") == 1
    assert "cm.part" in (tmp_path / "log.txt").read_text()
    assert "there" in (tmp_path / "log.txt.rank1").read_text()
    shown = capsys.readouterr().out
    assert "hello" in shown and "there" not in shown


def test_logger_takes_a_file_name(tmp_path: Path) -> None:
    setup_logger(str(tmp_path / "run.log"), name="contract.file", configure_stdout=False).warning("careful")
    assert "careful" in (tmp_path / "run.log").read_text()


def test_messages_are_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for index in range(5):
            log_first_n(logging.INFO, f"first {index}", n=2, name="contract")
            log_first_n(logging.INFO, "message", name="contract", key="message")
            log_every_n(logging.INFO, f"every {index}", n=3, name="contract")
            log_every_n_seconds(logging.INFO, f"seconds {index}", n=1000, name="contract")
    assert caplog.messages == ["first 0", "message", "every 0", "seconds 0", "first 1", "every 3"]


def test_small_table() -> None:
    names, _, values = create_small_table({"AP": 12.3456, "AP50": 20.0}).splitlines()
    assert names.split() == ["|", "AP", "|", "AP50", "|"]
    assert values.split() == ["|", "12.346", "|", "20.000", "|"]
