"""The training data loader: the same stream of batches for any number of workers, from any iteration on.

Detectron2's own loader starts a new random stream on every start, so an interrupted run cannot be continued exactly.
Here the order of the pictures is a function of the seed (see `mixture`), every sample's augmentation is a function of
the seed and of its place in the stream, and batches are formed from facts of the records alone, so a start at iteration
n skips the first n batches without reading a record.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grounding_dino.data.build import load_train_sets
from grounding_dino.data.mappers import TextDetectionMapper, build_mapper
from grounding_dino.data.mixture import check_numbers, draw_order, log_shares, set_orders
from grounding_dino.data.record_sets import RecordSets, TextKind, repeat_factors

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

logger = logging.getLogger(__name__)

MAX_RETRIES = 20
REPORT_PERIOD = 1000  # batches after which the log says how many records were replaced
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class SampleError(ValueError):
    """A record cannot be made into a training sample, or many in a row cannot, so that training cannot go on."""


class StreamDataset(Dataset):
    """Maps `(position in the stream, record index)` to a training sample, with random numbers of its own.

    A record that the mapper turns down (None: an unreadable or vanished picture, say) is replaced by another of its
    set; the sample that takes its place lists such records in `replaced`.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict | None], seed: int) -> None:
        self.records = RecordSets.of(records)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        with own_random_numbers(self.seed, position):
            return self._sample(index)

    def _sample(self, index: int) -> dict:
        others = self.records.places(self.records.part_of(index))
        replaced: list[str] = []
        for _ in range(MAX_RETRIES):
            record = self.records[index]
            name = record.get("file_name", f"record {index}")
            try:
                sample = self.mapper(record)
            except ValueError as error:  # files that do not fit together, in words
                raise SampleError(f"{name} cannot be made into a training sample: {error}") from error
            except Exception as error:
                raise RuntimeError(f"{name} cannot be made into a training sample: {error}") from error
            if sample is not None:
                return {**sample, "replaced": replaced} if replaced else sample
            replaced.append(name)
            index = random.choice(others)
        raise SampleError(
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
        shares: Sequence[float] | None = None,
    ) -> None:
        """
        Args:
            batch_size: of this process.
            weights: how often each record is drawn an epoch (repeat factors).
            shares: of the draws, for each part of :class:`RecordSets`; see :func:`draw_order`.
        """
        if not len(records):
            raise ValueError("the training data set has no picture to train on; see the warnings above")
        if weights is not None and not (len(weights) == len(records) and float(sum(weights)) >= 1):
            raise ValueError(f"{len(weights)} weights that sum up to {float(sum(weights))} for {len(records)} records")
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.start = 0
        sets = RecordSets.of(records)
        self._weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        drawn = len(sets) if self._weights is None else round(float(self._weights.sum()))
        self.epoch_size = len(sets) if shares is not None else drawn
        self._shares = shares
        self._orders = set_orders(sets, None if self._weights is None else self._weights.numpy(), shares is not None)
        # grouping pictures of one orientation keeps padding small
        self._group = sets.column("landscape") if group_by_orientation else None
        self._rank, self._world = comm.get_rank(), comm.get_world_size()

    def _places(self) -> Iterator[np.ndarray]:
        """This process's share of the stream, in pieces of (N, 2): position and index."""
        position = 0
        for indices in draw_order(self._orders, self.seed, self._shares, self.shuffle):
            first = (self._rank - position) % self._world
            positions = np.arange(position + first, position + len(indices), self._world)
            position += len(indices)
            yield np.stack([positions, indices[first :: self._world]], axis=1)

    def _batches(self) -> Iterator[np.ndarray]:
        """Batches of each piece of the stream, (N, batch size, 2), in the order in which they become full."""
        nothing = np.zeros((0, 2), dtype=np.int64)
        waiting = [nothing, nothing]
        for places in self._places():
            group = np.zeros(len(places), np.bool_) if self._group is None else self._group[places[:, 1]]
            full = []
            for number in range(2):
                queue = np.concatenate([waiting[number], places[group == number]])
                end = len(queue) // self.batch_size * self.batch_size
                full.append(queue[:end].reshape(-1, self.batch_size, 2))
                waiting[number] = queue[end:]
            batches = np.concatenate(full)
            yield batches[np.argsort(batches[:, -1, 0])]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        left_out = self.start
        for batches in self._batches():
            for batch in batches[left_out:]:
                yield [(position, index) for position, index in batch.tolist()]
            left_out -= min(left_out, len(batches))


class StreamLoader(DataLoader):
    """A DataLoader that says, in this process, which records could not be used, and how many so far.

    The number goes to the event storage, too, where there is one: `replaced_samples`, of this process.
    """

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        samples = replaced = 0
        known: set[str] = set()
        for number, batch in enumerate(self._fetched(), 1):
            samples += len(batch)
            for sample in batch:
                names = sample.pop("replaced", ())
                replaced += len(names)
                for name in names:
                    if name not in known:
                        known.add(name)
                        logger.warning("training goes on without %s", name)
            if replaced and has_event_storage():
                get_event_storage().put_scalar("replaced_samples", replaced, smoothing_hint=False)
            if known and number % REPORT_PERIOD == 0:
                logger.warning(
                    "%d times in %d samples a record could not be used and another took its place; %d records are "
                    "unusable so far",
                    *(replaced, samples, len(known)),
                )
            yield batch

    def _fetched(self) -> Iterator[list[dict[str, Any]]]:
        """
        Raises:
            SampleError: its sentence alone, to which torch adds the traceback of the worker that it comes from.
        """
        try:
            yield from super().__iter__()
        except SampleError as error:
            raise SampleError(str(error).rpartition(f"{SampleError.__name__}: ")[2].strip()) from error


def build_stream_loader(
    records: Sequence[dict],
    mapper: Callable[[dict], dict | None],
    *,
    total_batch_size: int,
    num_workers: int,
    seed: int,
    group_by_orientation: bool = True,
    weights: Sequence[float] | Tensor | None = None,
    shares: Sequence[float] | None = None,
) -> DataLoader:
    """A loader of lists of mapped samples; :func:`start_stream_at` moves it before the first batch.

    For `weights` and `shares` see :class:`BatchStream`.

    Raises:
        ValueError: the batch cannot be split over the processes, or there is no record.
    """
    world = comm.get_world_size()
    if total_batch_size < world or total_batch_size % world:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {total_batch_size} cannot be split over {world} processes")
    sets = RecordSets.of(records)
    stream = BatchStream(
        sets,
        total_batch_size // world,
        seed=seed,
        group_by_orientation=group_by_orientation,
        weights=weights,
        shares=shares,
    )
    return StreamLoader(
        StreamDataset(sets, mapper, seed),
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


def pictures_an_epoch(loader: DataLoader) -> int:
    """Pictures of all processes in an epoch of a loader of :func:`build_stream_loader`, on average.

    With repeat factors or DATASETS.RATIOS it is what they draw; with DATASETS.WEIGHTS, whose stream has no epochs, as
    many pictures as there are.
    """
    stream = loader.batch_sampler
    assert isinstance(stream, BatchStream)
    return stream.epoch_size


def build_train_loader(cfg: CfgNode, seed: int) -> DataLoader:
    """The training loader of DATASETS.TRAIN, mixed by DATASETS.WEIGHTS or RATIOS.

    `DATALOADER.SAMPLER_TRAIN` may ask for repeat factors by frequency, which hold within each set.

    Raises:
        ValueError: no picture has an object that is no crowd, a prompt may list more names than the denoising part has
            labels, an unknown sampler, or weights that do not fit the sets.
    """
    records, shares = load_train_sets(cfg)
    if not records.column("has_object").any():
        raise ValueError(
            f"no picture of {', '.join(cfg.DATASETS.TRAIN)} has an object that is not a crowd region, so there is "
            "nothing to learn; check the annotations"
        )
    mapper = build_mapper(cfg, is_train=True)
    check_label_count(cfg, records, mapper)
    factors = _draws_an_epoch(cfg, records)
    loader = build_stream_loader(
        records,
        mapper,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        weights=factors,
        shares=shares,
    )
    log_shares(records, cfg.DATASETS.WEIGHTS, shares, None if factors is None else factors.numpy())
    pictures = pictures_an_epoch(loader)
    logger.info(
        "training on %d pictures; an epoch of %d takes %.1f iterations",
        *(len(records), pictures, pictures / cfg.SOLVER.IMS_PER_BATCH),
    )
    return loader


def check_label_count(cfg: CfgNode, records: Sequence[dict], mapper: Callable[[dict], dict | None]) -> None:
    """See before training that no prompt can list more names than the denoising label embedding has rows.

    Few records are read for it: facts say which can have the longest prompts. Mappers other than
    :class:`TextDetectionMapper` are not looked into.

    Raises:
        ValueError: one can; the message says how many rows are needed.
    """
    if not cfg.MODEL.DENOISING.ENABLED_ON or not isinstance(mapper, TextDetectionMapper):
        return
    sets = RecordSets.of(records)
    candidates = [sets[place] for place in _longest_prompts(sets, cfg.MODEL.DENOISING.NUM_LABELS)]
    if not candidates:
        return
    most, record = max(((mapper.most_labels(record), record) for record in candidates), key=lambda found: found[0])
    if most > cfg.MODEL.DENOISING.NUM_LABELS:
        kind = "phrases" if "caption" in record else "names"
        raise ValueError(
            f"a training prompt of {record.get('file_name')} (data set {record.get('dataset_name')!r}) can list {most} "
            f"{kind}, but MODEL.DENOISING.NUM_LABELS is {cfg.MODEL.DENOISING.NUM_LABELS}; set "
            f"MODEL.DENOISING.NUM_LABELS {most}. Where the checkpoint to start from holds another number of label "
            "rows, as mmdet's and this project's do, add MODEL.WEIGHTS_IGNORE \"['^denoising']\""
        )


def _longest_prompts(sets: RecordSets, allowed: int) -> list[int]:
    """Indices of records among which is one with the most labels, if that is more than `allowed`.

    With class names a prompt grows with the classes in the picture; a caption's labels are its phrases; of a record's
    own categories at most all are listed.
    """
    found: list[int] = []
    for number, part in enumerate(sets.parts):
        first = sets.places(number).start
        kinds, labels = part.column("text"), part.column("num_labels")
        for kind in (TextKind.CLASS_NAMES, TextKind.CAPTION):
            chosen = np.flatnonzero(kinds == kind)
            found += (first + chosen[labels[chosen].argmax()],) if len(chosen) else ()
        own = (kinds == TextKind.CATEGORIES) & (labels > allowed)
        found += (first + np.flatnonzero(own)).tolist()
    return sorted(map(int, found))


def _draws_an_epoch(cfg: CfgNode, records: RecordSets) -> Tensor | None:
    """How often each record is drawn an epoch: its repeat factor times its set's DATASETS.RATIOS; None: all once.

    Repeat factors are those of one data set alone, where class indices mean something.
    """
    name, ratios = cfg.DATALOADER.SAMPLER_TRAIN, list(cfg.DATASETS.RATIOS)
    if name not in SAMPLERS:
        raise ValueError(f"unknown DATALOADER.SAMPLER_TRAIN {name!r}; choose from {SAMPLERS}")
    unknown = set(cfg.DATALOADER.REPEAT_SETS) - set(records.names)
    if unknown:
        raise ValueError(f"DATALOADER.REPEAT_SETS names {sorted(unknown)}, which DATASETS.TRAIN does not")
    if ratios:
        check_numbers("DATASETS.RATIOS", ratios, records.names)
        if cfg.DATASETS.WEIGHTS:
            raise ValueError("both DATASETS.RATIOS and DATASETS.WEIGHTS are given; they exclude each other")
    elif name == "TrainingSampler":
        return None
    repeated = set(cfg.DATALOADER.REPEAT_SETS or records.names) if name == "RepeatFactorTrainingSampler" else set()
    threshold, sqrt = cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
    factors = [
        ratio * (repeat_factors(part, threshold, sqrt) if set_name in repeated else np.ones(len(part)))
        for part, set_name, ratio in zip(records.parts, records.names, ratios or [1.0] * len(records.parts))
    ]
    return torch.from_numpy(np.concatenate(factors))


def _as_list(samples: list[dict]) -> list[dict[str, Any]]:
    return samples


def _single_threaded(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
