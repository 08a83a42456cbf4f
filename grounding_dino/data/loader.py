"""The training data loader: the same stream of batches for any number of workers, from any iteration on.

Detectron2's own loader starts a new random stream on every start, so an interrupted run cannot be continued exactly.
Here the order of the pictures is a function of the seed, every sample's augmentation is a function of the seed and
of its place in the stream, and batches are formed from the records alone, so a start at iteration n skips the first
n batches without decoding a picture.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

logger = logging.getLogger(__name__)

MAX_RETRIES = 20


class StreamDataset(Dataset):
    """Maps `(position in the stream, record index)` to a training sample, with its own random numbers.

    A record that the mapper turns down (None) is replaced by another; each such record is named once.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict | None], seed: int) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        states = random.getstate(), np.random.get_state()
        try:
            entropy = np.random.SeedSequence([self.seed, position]).generate_state(2)
            random.seed(int(entropy[0]))
            np.random.seed(int(entropy[1]))
            return self._sample(index)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    def _sample(self, index: int) -> dict:
        for _ in range(MAX_RETRIES):
            sample = self.mapper(self.records[index])
            if sample is not None:
                return sample
            if index not in self._reported:
                self._reported.add(index)
                logger.warning("training goes on without %s", self.records[index].get("file_name", f"record {index}"))
            index = random.randrange(len(self.records))
        raise RuntimeError(
            f"{MAX_RETRIES} records in a row could not be turned into training samples, the last one "
            f"{self.records[index].get('file_name', index)}; check the data set's pictures and annotations"
        )


class BatchStream(Sampler):
    """Endless batches of `(position, index)`: shuffled epochs, split over processes, grouped by orientation.

    `start` batches are left out at the beginning; they cost no input or output.
    """

    def __init__(
        self,
        records: Sequence[dict],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        group_by_orientation: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:
        """`batch_size` is this process's; `weights`: how often each record is drawn an epoch (repeat factors)."""
        if not len(records):
            raise ValueError("the training data set has no picture to train on; see the warnings above")
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.start = 0
        self._weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self._size = len(records)
        # grouping pictures of one orientation keeps padding small
        self._group = [
            int(group_by_orientation and r.get("width", 1) > r.get("height", 1)) for r in records
        ]
        self._rank, self._world = comm.get_rank(), comm.get_world_size()

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            epoch = torch.arange(self._size)
            if self._weights is not None:
                whole = self._weights.floor()
                extra = torch.rand(self._size, generator=generator, dtype=torch.float64) < self._weights - whole
                epoch = epoch.repeat_interleave((whole + extra).long())
            if self.shuffle:
                epoch = epoch[torch.randperm(len(epoch), generator=generator)]
            yield from epoch.tolist()

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        stream = enumerate(self._indices())
        waiting: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
        for position, index in itertools.islice(stream, self._rank, None, self._world):
            batch = waiting[self._group[index]]
            batch.append((position, index))
            if len(batch) == self.batch_size:
                yield list(batch)
                batch.clear()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)


def build_stream_loader(
    records: Sequence[dict],
    mapper: Callable[[dict], dict | None],
    *,
    total_batch_size: int,
    num_workers: int,
    seed: int,
    group_by_orientation: bool = True,
    weights: Sequence[float] | None = None,
) -> DataLoader:
    """A loader of lists of mapped samples; set `loader.batch_sampler.start` before the first batch to resume."""
    world = comm.get_world_size()
    if total_batch_size < world or total_batch_size % world:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {total_batch_size} cannot be split over {world} processes")
    stream = BatchStream(
        records, total_batch_size // world, seed=seed, group_by_orientation=group_by_orientation, weights=weights
    )
    return DataLoader(
        StreamDataset(records, mapper, seed),
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_single_threaded,
        persistent_workers=False,
    )


def build_train_loader(cfg: CfgNode, seed: int) -> DataLoader:
    """The training loader of DATASETS.TRAIN; `DATALOADER.SAMPLER_TRAIN` may ask for repeat factors by frequency."""
    from grounding_dino.data.build import load_train_records
    from grounding_dino.data.mappers import build_mapper

    records = load_train_records(cfg)
    weights = None
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        weights = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD
        )
    elif cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; "
            "choose TrainingSampler or RepeatFactorTrainingSampler"
        )
    return build_stream_loader(
        records,
        build_mapper(cfg, is_train=True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        weights=weights,
    )


def _as_list(samples: list[dict]) -> list[dict[str, Any]]:
    return samples


def _single_threaded(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
