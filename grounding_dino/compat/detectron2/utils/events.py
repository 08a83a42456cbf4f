"""What happens during training: `EventStorage` collects it, the writers in this package report it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from .event_writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_CURRENT_STORAGE_STACK: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The innermost `EventStorage` in use. Raises RuntimeError outside ``with EventStorage(...)``."""
    if not _CURRENT_STORAGE_STACK:
        raise RuntimeError("get_event_storage was called outside of `with EventStorage(...)`; training opens one")
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Whether an `EventStorage` is in use."""
    return bool(_CURRENT_STORAGE_STACK)


class EventStorage:
    """Scalars (with their history), images and histograms of a training, by name and iteration.

    Used as a context: inside ``with EventStorage() as storage`` it is what `get_event_storage` returns.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep a picture for the writers: uint8 or float in [0, 1], (3, H, W)."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Record `value` at the current iteration, or at `cur_iter`.

        `smoothing_hint`: whether writers should show a median over recent values; it must stay the same for a name.
        """
        name = self._current_prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"scalar {name!r} was first put with smoothing_hint={not smoothing_hint}; keep to one")
        self._history[name].update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Record several scalars given as keywords."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Keep a histogram of the tensor's values, in `bins` equal bins, for tensorboard."""
        values = hist_tensor.detach().float()
        lowest, highest = values.min().item(), values.max().item()
        edges = torch.linspace(lowest, highest, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": lowest,
                "max": highest,
                "num": values.numel(),
                "sum": float(values.sum()),
                "sum_squares": float((values**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(values, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """All values of scalar `name`. Raises KeyError where there is none."""
        if name not in self._history:
            raise KeyError(f"no scalar {name!r} was put in the event storage; there are {sorted(self._history)}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """The histories of all scalars."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of every scalar and its iteration."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest`, with the median over the last `window_size` iterations where the hint asks for it."""
        result = {}
        for name, (value, iteration) in self._latest_scalars.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, iteration)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of `name` fall in the `window_size` iterations up to its last one."""
        values = self._history[name].values()
        first = values[-1][1] - window_size
        count = 0
        for _, iteration in reversed(values):
            if iteration <= first:
                break
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """The smoothing hint of every scalar."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go on to the next iteration. The training loop calls this."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration; when used outside of an iteration, the number of completed ones."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """Older name of `iter`."""
        return self._iter

    def __enter__(self) -> EventStorage:
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        if _CURRENT_STORAGE_STACK.pop() is not self:
            raise RuntimeError("event storages were left in another order than they were entered")

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Within this context scalars are put as ``name/...``."""
        previous = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = previous

    def clear_images(self) -> None:
        """Forget the pictures; writers call this once they have written them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; writers call this once they have written them."""
        self._histograms = []
