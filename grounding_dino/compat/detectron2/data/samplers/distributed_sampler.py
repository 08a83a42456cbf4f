"""Samplers for training (endless, shared out among processes) and for inference (each record once)."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class TrainingSampler(Sampler[int]):
    """An endless stream of indices of a data set; of one stream, each process takes every world-size-th.

    All processes need the same seed; None draws one that they share.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int) or size <= 0:
            raise ValueError(f"TrainingSampler needs the number of records, a whole number above 0, but got {size!r}.")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class RepeatFactorTrainingSampler(Sampler[int]):
    """Repeat pictures with rare categories (LVIS, Gupta et al. 2019, section B.2).

    A fractional factor is rounded up or down at random in each epoch, so that it holds on average.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Factor of each picture: the greatest of its categories' max(1, sqrt(threshold / frequency)).

        Args:
            dataset_dicts: records with "annotations".
            repeat_thresh: categories in a smaller share of the pictures are repeated.
            sqrt: take the square root, as in the paper.

        Returns:
            (N,) float32.
        """
        categories = [{ann["category_id"] for ann in record["annotations"]} for record in dataset_dicts]
        pictures_with = Counter(itertools.chain.from_iterable(categories))
        factor = {}
        for category, count in pictures_with.items():
            ratio = repeat_thresh / (count / len(dataset_dicts))
            factor[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
        of_picture = [max((factor[category] for category in present), default=1.0) for present in categories]
        return torch.tensor(of_picture, dtype=torch.float32)

    def _epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        rounded_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = (self._int_part + rounded_up.float()).long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._epoch_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()


class InferenceSampler(Sampler[int]):
    """Each index exactly once over all processes: consecutive shares whose lengths differ by at most one."""

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"InferenceSampler needs at least one record, but got {size}.")
        self._size = size
        self._local_indices = self._share(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _share(size: int, world_size: int, rank: int) -> range:
        length, left_over = divmod(size, world_size)
        begin = rank * length + min(rank, left_over)
        return range(begin, begin + length + (1 if rank < left_over else 0))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
