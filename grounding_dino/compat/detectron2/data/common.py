"""Dataset wrappers: compact lists, mapping with retries, sampling into a stream, batches of like aspect ratio."""

from __future__ import annotations

import copy as copy_module
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch.utils.data as torch_data
from torch.utils.data.sampler import Sampler

logger = logging.getLogger(__name__)

MAP_RETRIES_BEFORE_WARNING = 3


class _SerializedList:
    """A list of picklable objects kept as one byte array, so that forked workers share its memory."""

    def __init__(self, lst: list[Any]) -> None:
        blobs = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in lst]
        self._ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
        self._bytes = np.concatenate(blobs) if blobs else np.empty(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        start = 0 if idx == 0 else int(self._ends[idx - 1])
        # These bytes were written by __init__ in this program, never read from a file.
        return pickle.loads(self._bytes[start : int(self._ends[idx])].data)


class DatasetFromList(torch_data.Dataset[Any]):
    """A list as a map-style data set.

    Args:
        copy: give out copies, so that what a mapper changes does not stay (only without `serialize`).
        serialize: keep the elements as bytes in one buffer; or a function from a list to such a container.
    """

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool | Callable[[list[Any]], Any] = True) -> None:
        self._copy = copy and not serialize
        self._lst: Any = lst
        if callable(serialize):
            self._lst = serialize(lst)
        elif serialize:
            self._lst = _SerializedList(lst)

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"record {idx} of a data set with {len(self)} records.")
        item = self._lst[int(idx) % len(self)]
        return copy_module.deepcopy(item) if self._copy else item


class MapDataset(torch_data.Dataset[Any]):
    """A data set with a function applied to its elements; iterable data sets stay iterable.

    Where the function returns None, another element is taken in its place: a random one, or the next of a stream.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        is_stream = isinstance(dataset, torch_data.IterableDataset)
        return super().__new__(_MappedStream if is_stream and cls is MapDataset else cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, Callable[[Any], Any]]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index = int(idx)
        retries = 0
        while True:
            mapped = self._map_func(self._dataset[index])
            if mapped is not None:
                self._fallback_candidates.add(index)
                return mapped
            retries += 1
            self._fallback_candidates.discard(index)
            if not self._fallback_candidates:
                raise ValueError("the mapper returned None for every record of the data set: nothing is left to use.")
            if retries >= MAP_RETRIES_BEFORE_WARNING:
                logger.warning("the mapper returned None %d times in a row, last for record %d", retries, index)
            index = self._rng.choice(sorted(self._fallback_candidates))


class _MappedStream(MapDataset, torch_data.IterableDataset[Any]):
    """The iterable half of `MapDataset`."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for item in self._dataset:
            mapped = self._map_func(item)
            if mapped is not None:
                yield mapped


class ToIterableDataset(torch_data.IterableDataset[Any]):
    """Read a map-style data set in the order of a sampler, as a stream shared out among the loader's workers.

    Each worker takes `shard_chunk_size` indices in turn: with the batch size as the chunk, batches hold the same
    records in the same order as without workers.
    """

    def __init__(
        self,
        dataset: torch_data.Dataset[Any],
        sampler: Sampler[int],
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices: Iterable[int] = self.sampler
        worker = torch_data.get_worker_info()
        if self.shard_sampler and worker is not None and worker.num_workers > 1:
            indices = _every_nth_chunk(indices, self.shard_chunk_size, worker.num_workers, worker.id)
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        if not isinstance(self.sampler, Sized):
            raise TypeError(f"a stream over {type(self.sampler).__name__} is endless and has no length.")
        return len(self.sampler)


def _every_nth_chunk(indices: Iterable[int], chunk: int, count: int, turn: int) -> Iterator[int]:
    iterator = iter(indices)
    for position in itertools.count():
        taken = list(itertools.islice(iterator, chunk))
        if not taken:
            return
        if position % count == turn:
            yield from taken


class AspectRatioGroupedDataset(torch_data.IterableDataset[Any]):
    """Batches of pictures that are all wide or all tall, which wastes less padding.

    The elements are dicts with "width" and "height". A batch is given out as soon as it is full.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        buckets: tuple[list[Any], list[Any]] = ([], [])
        for record in self.dataset:
            bucket = buckets[0 if record["width"] > record["height"] else 1]
            bucket.append(record)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                # Cleared before it is given out: a consumer that stops here must not see the records again.
                bucket.clear()
                yield batch
