"""Writers that report what an `EventStorage` collected: terminal, JSON lines and tensorboard."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
import time
from collections import defaultdict
from typing import IO, TYPE_CHECKING, Any

import torch

from .file_io import PathManager

if TYPE_CHECKING:
    from .events import EventStorage

# Module "events" is where upstream's writers live, and what logging settings name.
_LOGGER_NAME = "detectron2.utils.events"


def _current_storage() -> EventStorage:
    from .events import get_event_storage

    return get_event_storage()


class EventWriter:
    """Base of objects that report the current `EventStorage` now and then."""

    def write(self) -> None:
        """Report what is new."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish; nothing is written afterwards."""


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object a line and iteration, with the key "iteration"."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """`window_size`: for scalars whose smoothing hint is set."""
        self._file_handle: IO[str] = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Append the scalars put since the last call and flush them to the disk."""
        by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in _current_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                by_iteration[iteration][name] = value
        if not by_iteration:
            return
        for iteration in sorted(by_iteration):
            line = json.dumps({**by_iteration[iteration], "iteration": iteration}, sort_keys=True)
            self._file_handle.write(line + "\n")
        self._last_write = max(by_iteration)
        self._file_handle.flush()
        try:
            os.fsync(self._file_handle.fileno())
        except OSError:
            pass  # remote files have no descriptor

    def close(self) -> None:
        """Close the file."""
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, pictures and histograms to a tensorboard folder, which is created at the first write."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """`kwargs` go to ``torch.utils.tensorboard.SummaryWriter``."""
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write what was put since the last call; pictures and histograms are then removed from the storage."""
        storage = _current_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, picture, iteration in storage._vis_data:
            self._writer.add_image(name, picture, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        """Close the writer if it was used."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line of progress: time left, iteration, losses, times, learning rate, memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """`max_iter`: for the estimate of the time left; `window_size`: iterations the medians go over."""
        self.logger = logging.getLogger(_LOGGER_NAME)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and time of the last write

    def _time_left(self, storage: EventStorage) -> str:
        if self._max_iter is None:
            return ""
        iteration = storage.iter
        seconds: float | None = None
        if "time" in storage.histories():
            seconds = storage.history("time").median(storage.count_samples("time", 1000))
            storage.put_scalar("eta_seconds", seconds * (self._max_iter - iteration - 1), smoothing_hint=False)
        elif self._last_write is not None and iteration > self._last_write[0]:
            # Without IterationTimer: from the time since the last write.
            seconds = (time.perf_counter() - self._last_write[1]) / (iteration - self._last_write[0])
        self._last_write = (iteration, time.perf_counter())
        if seconds is None:
            return ""
        return str(datetime.timedelta(seconds=int(seconds * (self._max_iter - iteration - 1))))

    def write(self) -> None:
        """Log the line."""
        storage = _current_storage()
        if storage.iter == self._max_iter:
            return  # the last iteration was reported when it was done
        histories = storage.histories()

        def median(name: str) -> float | None:
            return histories[name].median(storage.count_samples(name, self._window_size)) if name in histories else None

        time_left = self._time_left(storage)
        parts = [f"eta: {time_left}"] if time_left else []
        parts.append(f"iter: {storage.iter}")
        parts.extend(f"{name}: {median(name):.4g}" for name in histories if "loss" in name)
        for name in ("time", "data_time"):
            value = median(name)
            if value is not None:
                parts.append(f"{name}: {value:.4f}  last_{name}: {histories[name].latest():.4f}")
        parts.append(f"lr: {histories['lr'].latest():.5g}" if "lr" in histories else "lr: N/A")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        self.logger.info(" " + "  ".join(parts))
