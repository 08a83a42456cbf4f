"""The order in which sets are gone through and mixed."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from grounding_dino.data.mixture import BLOCK, WINDOW, SetOrder, draw_order, log_shares, shares_of
from grounding_dino.data.record_sets import ListRecords, RecordSets

import numpy as np
import pytest


def drawn(orders: list[SetOrder], count: int, **options: Any) -> list[int]:
    pieces = draw_order(orders, **{"seed": 3, **options})
    return list(itertools.islice(itertools.chain.from_iterable(map(np.ndarray.tolist, pieces)), count))


def epochs(indices: list[int], length: int) -> Iterator[list[int]]:
    for begin in range(0, len(indices), length):
        yield indices[begin : begin + length]


ORDERS = {
    "in memory": [SetOrder(0, 1000)],
    "on disk": [SetOrder(0, 1000, in_blocks=True)],
    "on disk, several windows": [SetOrder(0, BLOCK * WINDOW * 2 + 5, in_blocks=True)],
    "mixed": [SetOrder(0, 300), SetOrder(300, 20000, in_blocks=True), SetOrder(20300, 1)],
}


@pytest.mark.parametrize("orders", ORDERS.values(), ids=ORDERS)
def test_every_epoch_has_each_record_once_in_another_order(orders: list[SetOrder]) -> None:
    size = sum(order.size for order in orders)
    first, second = epochs(drawn(orders, 2 * size), size)
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert drawn(orders, size) == first
    assert drawn(orders, size, seed=4) != first


def test_records_on_disk_are_shuffled_in_windows_of_blocks() -> None:
    size = BLOCK * WINDOW * 3
    indices = np.array(drawn([SetOrder(0, size, in_blocks=True)], size))
    for window in indices.reshape(3, -1):
        blocks = Counter((window // BLOCK).tolist())
        assert len(blocks) == WINDOW and set(blocks.values()) == {BLOCK}
        assert np.abs(np.diff(window)).mean() > BLOCK * WINDOW / 4, "neighbours are far apart in the set"


def test_repeats_hold_on_average_also_on_disk() -> None:
    repeats = np.array([1.0, 2.0, 1.5, 0.0] * 200)
    for in_blocks in (False, True):
        counts = Counter(drawn([SetOrder(0, 800, in_blocks, repeats)], 9000))
        by_repeat = [sum(counts[index] for index in range(kind, 800, 4)) / 200 for kind in range(4)]
        assert by_repeat == pytest.approx([10, 20, 15, 0], abs=0.3)


# -------------------------------------------------------------------------------------------------------- weights


def test_shares_hold_in_every_stretch_and_sets_are_gone_through_before_they_repeat() -> None:
    orders = [SetOrder(0, 50), SetOrder(50, 30000, in_blocks=True), SetOrder(30050, 7)]
    shares = [0.5, 0.4, 0.1]
    indices = np.array(drawn(orders, 100_000, shares=shares))
    for stretch in (slice(0, 100_000), slice(0, 2000), slice(70_000, 75_000)):
        parts = np.searchsorted([50, 30050], indices[stretch], side="right")
        found = np.bincount(parts, minlength=3) / len(parts)
        assert found == pytest.approx(shares, abs=0.03)
    whole = np.bincount(np.searchsorted([50, 30050], indices, side="right"))
    assert whole == pytest.approx([50_000, 40_000, 10_000], abs=150)
    for order in orders:
        own = indices[(indices >= order.first) & (indices < order.first + order.size)].tolist()
        for epoch in list(epochs(own, order.size))[:-1]:
            assert sorted(epoch) == list(range(order.first, order.first + order.size))


def test_a_set_of_weight_0_is_never_drawn_and_a_small_one_is() -> None:
    orders = [SetOrder(0, 10), SetOrder(10, 10), SetOrder(20, 10)]
    counts = Counter(index // 10 for index in drawn(orders, 20_000, shares=[0.999, 0.0, 0.001]))
    assert counts[1] == 0
    assert counts[2] == pytest.approx(20, abs=2)


def test_weights_are_relative() -> None:
    assert shares_of([1, 3, 0], ["a", "b", "c"]) == [0.25, 0.75, 0]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0], r"has 1 numbers for the 2 sets of DATASETS.TRAIN \(cats, dogs\)"),
        ([1.0, -2.0], "the number of dogs in DATASETS.WEIGHTS is -2.0; use numbers from 0 on"),
        ([float("nan"), 1.0], "the number of cats in DATASETS.WEIGHTS is nan"),
        ([1.0, "2"], "the number of dogs in DATASETS.WEIGHTS is '2'"),
        ([0, 0], r"DATASETS.WEIGHTS \[0, 0\] draws nothing"),
    ],
)
def test_wrong_weights_are_refused(weights: list[Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shares_of(weights, ["cats", "dogs"])


def test_the_log_shows_what_is_drawn(caplog: pytest.LogCaptureFixture) -> None:
    records = RecordSets([ListRecords([{}] * 3), ListRecords([{}])], ["cats", "dogs"])
    with caplog.at_level(logging.INFO):
        log_shares(records)
        log_shares(records, [3.0, 2.0], [0.6, 0.4])
        log_shares(records, repeats=np.array([1.0, 1.0, 1.0, 2.0]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in caplog.text.splitlines() if "s " in line[:8]]
    assert [row for row in rows if row[0] == "cats"] == [
        ["cats", "3", "-", "75.00 %"],
        ["cats", "3", "3", "60.00 %"],
        ["cats", "3", "-", "60.00 %"],
    ]
