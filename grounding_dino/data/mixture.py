"""In which order a training draws the records of its sets: a function of the seed, cheap for millions of records.

A set is gone through again and again, each time (an epoch) in another order, and no record comes again before all have
come. Records in memory are shuffled as a whole. Records on disk are shuffled in blocks: the blocks of
neighbouring records change places, and records are shuffled within a window of several blocks, so that disks read
neighbours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grounding_dino.data.record_sets import RecordSets

import numpy as np
import torch
from tabulate import tabulate

logger = logging.getLogger(__name__)

BLOCK = 256  # neighbouring records that stay together
WINDOW = 64  # blocks whose records are shuffled among each other
PIECE = 16384  # indices drawn at once where several sets are mixed


@dataclass(frozen=True)
class SetOrder:
    """How the records `first` ... `first + size - 1` are gone through.

    `repeats`: (size,) float64, how often each is drawn an epoch on average; None draws each once.
    """

    first: int
    size: int
    in_blocks: bool = False
    repeats: np.ndarray | None = None


class _Walk:
    """Goes through one set, epoch after epoch."""

    def __init__(self, order: SetOrder, seed: int, shuffle: bool) -> None:
        self._order = order
        self._shuffle = shuffle
        self._generator = torch.Generator().manual_seed(seed)
        self._pieces: Iterator[np.ndarray] = iter(())
        self._rest = np.zeros(0, dtype=np.int64)

    def begin_epoch(self) -> int:
        """Draw how often each record comes; returns the epoch's length."""
        counts = self._counts()
        self._pieces = self._in_blocks(counts) if self._order.in_blocks and self._shuffle else self._whole(counts)
        return self._order.size if counts is None else int(counts.sum())

    def epoch(self) -> Iterator[np.ndarray]:
        """The indices of the next epoch, in pieces."""
        self.begin_epoch()
        return self._pieces

    def take(self, count: int) -> np.ndarray:
        """The next `count` indices, going on with further epochs."""
        taken, missing = [self._rest], count - len(self._rest)
        while missing > 0:
            piece = next(self._pieces, None)
            if piece is None:
                self.begin_epoch()
            else:
                taken.append(piece)
                missing -= len(piece)
        joined = np.concatenate(taken)
        self._rest = joined[count:]
        return joined[:count]

    def _counts(self) -> np.ndarray | None:
        repeats = self._order.repeats
        if repeats is None:
            return None
        whole = np.floor(repeats)
        extra = torch.rand(len(repeats), generator=self._generator, dtype=torch.float64).numpy() < repeats - whole
        return (whole + extra).astype(np.int64)

    def _shuffled(self, rows: np.ndarray) -> np.ndarray:
        return rows[torch.randperm(len(rows), generator=self._generator).numpy()] if self._shuffle else rows

    def _whole(self, counts: np.ndarray | None) -> Iterator[np.ndarray]:
        rows = np.arange(self._order.first, self._order.first + self._order.size, dtype=np.int64)
        yield self._shuffled(rows if counts is None else rows.repeat(counts))

    def _in_blocks(self, counts: np.ndarray | None) -> Iterator[np.ndarray]:
        size = self._order.size
        starts = self._shuffled(np.arange(0, size, BLOCK, dtype=np.int64))
        for place in range(0, len(starts), WINDOW):
            rows = (starts[place : place + WINDOW, None] + np.arange(BLOCK)).ravel()
            rows = rows[rows < size]
            yield self._order.first + self._shuffled(rows if counts is None else rows.repeat(counts[rows]))


def draw_order(
    orders: Sequence[SetOrder], seed: int, shares: Sequence[float] | None = None, shuffle: bool = True
) -> Iterator[np.ndarray]:
    """The indices that a training draws, without end, in int64 arrays.

    Without `shares` every epoch has each record of all sets once (or as its repeat factor says). With them a set
    gets its share of the draws, in any longer stretch, and is gone through at its own pace.

    Args:
        shares: of each set, not negative, of sum 1.
    """
    if len(orders) == 1:
        walk = _Walk(orders[0], seed, shuffle)
        while True:
            yield from walk.epoch()
    walks = [_Walk(order, _child_seed(seed, number), shuffle) for number, order in enumerate(orders)]
    generator = torch.Generator().manual_seed(_child_seed(seed, len(orders)))
    if shares is None:
        while True:
            yield from _mixed_epoch(walks, generator if shuffle else None)
    # Sets begin at random points of their rhythm, lest small shares always come late.
    rhythm = torch.rand(len(orders), generator=generator, dtype=torch.float64).numpy()
    step = min(PIECE, sum(order.size for order in orders))
    due = np.floor(rhythm)
    for end in _multiples(step):
        before, due = due, np.floor(end * np.asarray(shares, dtype=np.float64) + rhythm)
        yield _mixed(walks, (due - before).astype(np.int64), generator if shuffle else None)


def _mixed_epoch(walks: Sequence[_Walk], generator: torch.Generator | None) -> Iterator[np.ndarray]:
    """One epoch of each walk, spread evenly over one epoch of all."""
    lengths = np.array([walk.begin_epoch() for walk in walks], dtype=np.int64)
    total = int(lengths.sum())
    for begin in range(0, total, PIECE):
        end = min(begin + PIECE, total)
        yield _mixed(walks, end * lengths // total - begin * lengths // total, generator)


def _mixed(walks: Sequence[_Walk], counts: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
    labels = np.arange(len(walks)).repeat(counts)
    if generator is not None:
        labels = labels[torch.randperm(len(labels), generator=generator).numpy()]
    piece = np.empty(len(labels), dtype=np.int64)
    for number, walk in enumerate(walks):
        piece[labels == number] = walk.take(int(counts[number]))
    return piece


def _multiples(step: int) -> Iterator[int]:
    end = 0
    while True:
        end += step
        yield end


def _child_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def set_orders(records: RecordSets, repeats: np.ndarray | None = None, separately: bool = False) -> list[SetOrder]:
    """The orders of the sets, to be mixed: sets in memory are shuffled as one unless `separately`.

    Args:
        repeats: of all records, see :class:`SetOrder`.
    """
    if not separately and not any(part.in_blocks for part in records.parts):
        return [SetOrder(0, len(records), repeats=repeats)]
    orders = []
    for number, part in enumerate(records.parts):
        places = records.places(number)
        own = None if repeats is None else repeats[places.start : places.stop]
        orders.append(SetOrder(places.start, len(part), part.in_blocks, own))
    return orders


# ----------------------------------------------------------------------------------------------------- weights


def check_numbers(key: str, numbers: Sequence[float], names: Sequence[str]) -> None:
    """See that `numbers`, the value of `key`, has one for each of `names`, DATASETS.TRAIN, and draws something.

    Raises:
        ValueError: another number of them than of sets, one that is negative or no finite number, or all are 0.
    """
    if len(numbers) != len(names):
        raise ValueError(
            f"{key} {list(numbers)} has {len(numbers)} numbers for the {len(names)} sets of DATASETS.TRAIN "
            f"({', '.join(names)}); give one for each, or [] to draw every picture once an epoch"
        )
    for value, name in zip(numbers, names):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f"the number of {name} in {key} is {value!r}; use numbers from 0 on")
    if not sum(numbers) > 0:
        raise ValueError(f"{key} {list(numbers)} draws nothing; give one set a number above 0 at least")


def shares_of(weights: Sequence[float], names: Sequence[str]) -> list[float]:
    """Shares of the draws, of sum 1, from DATASETS.WEIGHTS, one number for each of `names`, DATASETS.TRAIN.

    Raises:
        ValueError: see :func:`check_numbers`.
    """
    check_numbers("DATASETS.WEIGHTS", weights, names)
    total = sum(weights)
    return [weight / total for weight in weights]


def log_shares(
    records: RecordSets,
    weights: Sequence[float] = (),
    shares: Sequence[float] | None = None,
    repeats: np.ndarray | None = None,
) -> None:
    """Log a table of the sets: pictures, weight, and share of what is drawn.

    Args:
        weights: DATASETS.WEIGHTS.
        shares: what follows from them; None draws each picture once, or as often as `repeats` says.
        repeats: of all records, see :class:`SetOrder`.
    """
    if shares is None:
        draws = [
            len(part) if repeats is None else float(repeats[records.places(number)].sum())
            for number, part in enumerate(records.parts)
        ]
        shares = [count / sum(draws) for count in draws]
    written = [f"{weight:.4g}" for weight in weights] or ["-"] * len(shares)
    percent = [f"{100 * share:.2f} %" for share in shares]
    rows = list(zip(records.names, records.sizes, written, percent))
    headers = ["data set", "pictures", "weight", "share"]
    logger.info("what is drawn in this training:\n%s", tabulate(rows, headers=headers, tablefmt="pipe"))
