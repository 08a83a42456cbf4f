"""A bounded, thread-safe cache of features, least recently used first out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Features = TypeVar("Features")


class FeatureCache(Generic[Features]):
    """Keeps at most `size` entries; 0 keeps none. A copied or pickled cache starts empty."""

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"the cache size {size} is negative; 0 switches the cache off")
        self.size = size
        self._entries: OrderedDict[Hashable, Features] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Features | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, value: Features) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __reduce__(self) -> tuple[type[FeatureCache[Features]], tuple[int]]:
        return FeatureCache, (self.size,)
