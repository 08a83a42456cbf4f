"""The training data loader: the same stream of batches for any number of workers, from any iteration on.

Detectron2's own loader starts a new random stream on every start, so an interrupted run cannot be continued exactly.
Here the order of the pictures is a function of the seed, every sample's augmentation is a function of the seed and
of its place in the stream, and batches are formed from the records alone, so a start at iteration n skips the first
n batches without decoding a picture.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grounding_dino.data.build import load_train_records
from grounding_dino.data.mappers import TextDetectionMapper, build_mapper

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

logger = logging.getLogger(__name__)

MAX_RETRIES = 20
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class StreamDataset(Dataset):
    """Maps `(position in the stream, record index)` to a training sample, with random numbers of its own.

    A record that the mapper turns down (None: an unreadable or vanished picture, say) is replaced by another; each
    such record is named once. Records are kept as bytes, so that worker processes share their memory.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict | None], seed: int) -> None:
        self.records = DatasetFromList(list(records), copy=False, serialize=True)
        self.mapper = mapper
        self.seed = seed
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        with own_random_numbers(self.seed, position):
            return self._sample(index)

    def _sample(self, index: int) -> dict:
        for _ in range(MAX_RETRIES):
            record = self.records[index]
            name = record.get("file_name", f"record {index}")
            try:
                sample = self.mapper(record)
            except Exception as error:
                raise RuntimeError(f"{name} cannot be made into a training sample: {error}") from error
            if sample is not None:
                return sample
            if index not in self._reported:
                self._reported.add(index)
                logger.warning("training goes on without %s", name)
            index = random.randrange(len(self.records))
        raise RuntimeError(
            f"{MAX_RETRIES} records in a row could not be turned into training samples, the last one {name}; the "
            "warnings above say why: check that the data set's pictures are still there, and its annotations"
        )


@contextlib.contextmanager
def own_random_numbers(*entropy: int) -> Iterator[None]:
    """Within it, python's, numpy's and torch's CPU generators start from `entropy`; afterwards they go on as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(int(seeds[0]))
            np.random.seed(int(seeds[1]))
            torch.default_generator.manual_seed(int(seeds[2]))
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


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
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        """`batch_size` is this process's; `weights`: how often each record is drawn an epoch (repeat factors)."""
        if not len(records):
            raise ValueError("the training data set has no picture to train on; see the warnings above")
        if weights is not None and not (len(weights) == len(records) and float(sum(weights)) >= 1):
            raise ValueError(f"{len(weights)} weights that sum up to {float(sum(weights))} for {len(records)} records")
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.start = 0
        self._weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self._size = len(records)
        # grouping pictures of one orientation keeps padding small
        self._group = [int(group_by_orientation and r.get("width", 1) > r.get("height", 1)) for r in records]
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
    weights: Sequence[float] | Tensor | None = None,
) -> DataLoader:
    """A loader of lists of mapped samples; :func:`start_stream_at` moves it before the first batch.

    Raises:
        ValueError: the batch cannot be split over the processes, or there is no record.
    """
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
        # Without a generator of its own, starting the loader would draw from the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def start_stream_at(loader: DataLoader, iteration: int, seed: int) -> None:
    """Make a loader of :func:`build_stream_loader` that was not read from yet begin with the batch of `iteration`."""
    stream, dataset = loader.batch_sampler, loader.dataset
    assert isinstance(stream, BatchStream) and isinstance(dataset, StreamDataset)
    stream.start, stream.seed, dataset.seed = iteration, seed, seed


def build_train_loader(cfg: CfgNode, seed: int) -> DataLoader:
    """The training loader of DATASETS.TRAIN; `DATALOADER.SAMPLER_TRAIN` may ask for repeat factors by frequency.

    Raises:
        ValueError: no picture has an object that is no crowd, a prompt may list more names than the denoising part has
            labels, or an unknown sampler.
    """
    records = load_train_records(cfg)
    if not any(_has_object(record) for record in records):
        raise ValueError(
            f"no picture of {', '.join(cfg.DATASETS.TRAIN)} has an object that is not a crowd region, so there is "
            "nothing to learn; check the annotations"
        )
    mapper = build_mapper(cfg, is_train=True)
    check_label_count(cfg, records, mapper)
    loader = build_stream_loader(
        records,
        mapper,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        weights=_repeat_factors(cfg, records),
    )
    iterations = len(records) / cfg.SOLVER.IMS_PER_BATCH
    logger.info("training on %d pictures; an epoch of them takes %.1f iterations", len(records), iterations)
    return loader


def check_label_count(cfg: CfgNode, records: Sequence[dict], mapper: Callable[[dict], dict | None]) -> None:
    """See before training that no prompt can list more names than the denoising label embedding has rows.

    Mappers other than :class:`TextDetectionMapper` are not looked into.

    Raises:
        ValueError: one can; the message says how many rows are needed.
    """
    if not cfg.MODEL.DENOISING.ENABLED_ON or not isinstance(mapper, TextDetectionMapper):
        return
    most, record = max(((mapper.most_labels(record), record) for record in records), key=lambda found: found[0])
    if most > cfg.MODEL.DENOISING.NUM_LABELS:
        kind = "phrases" if "caption" in record else "names"
        raise ValueError(
            f"a training prompt of {record.get('file_name')} (data set {record.get('dataset_name')!r}) can list {most} "
            f"{kind}, but MODEL.DENOISING.NUM_LABELS is {cfg.MODEL.DENOISING.NUM_LABELS}; set "
            f"MODEL.DENOISING.NUM_LABELS {most}. Where the checkpoint to start from holds another number of label "
            "rows, as mmdet's and this project's do, add MODEL.WEIGHTS_IGNORE \"['^denoising']\""
        )


def _has_object(record: dict) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in record.get("annotations", ()))


def _repeat_factors(cfg: CfgNode, records: Sequence[dict]) -> Tensor | None:
    """How often each record is drawn an epoch; class indices mean something within one data set only."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in SAMPLERS:
        raise ValueError(f"unknown DATALOADER.SAMPLER_TRAIN {name!r}; choose from {SAMPLERS}")
    if name == "TrainingSampler":
        return None
    places: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        places[record.get("dataset_name", "")].append(place)
    factors = torch.ones(len(records))
    for chosen in places.values():
        factors[chosen] = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            [records[place] for place in chosen], cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
    return factors


def _as_list(samples: list[dict]) -> list[dict[str, Any]]:
    return samples


def _single_threaded(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
