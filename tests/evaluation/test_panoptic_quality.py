"""Panoptic quality by cases counted by hand, and against a slow implementation on random maps."""

from __future__ import annotations

from collections.abc import Mapping

from grounding_dino.evaluation.panoptic_quality import (
    PanopticCounts,
    Segments,
    count_segments,
    panoptic_metrics,
)

import numpy as np
import pytest

K = 3


def segments(picture: str, categories: Mapping[str, int], crowd: str = "") -> Segments:
    """A map of letters, one a pixel, "." for void; `categories` by letter."""
    rows = [row.strip() for row in picture.split("/")]
    ids = np.array([[0 if pixel == "." else ord(pixel) for pixel in row] for row in rows], dtype=np.int64)
    letters = list(categories)
    return Segments.of(ids, [ord(k) for k in letters], list(categories.values()), [k in crowd for k in letters])


def counted(truth: Segments, found: Segments) -> list[tuple[float, int, int, int]]:
    """(IoU sum, TP, FP, FN) of each category."""
    counts = count_segments(truth, found, K)
    columns = (counts.iou.round(6), counts.matched, counts.extra, counts.missed)
    return list(zip(*(column.tolist() for column in columns)))


NONE = (0.0, 0, 0, 0)


def test_a_perfect_result() -> None:
    truth = segments("aabb/aacc", {"a": 0, "b": 1, "c": 2})
    found = segments("xxyy/xxzz", {"x": 0, "y": 1, "z": 2})
    assert counted(truth, found) == [(1.0, 1, 0, 0)] * 3


def test_a_miss_and_an_extra() -> None:
    truth = segments("aabb/aabb", {"a": 0, "b": 1})
    assert counted(truth, segments("xx../xx..", {"x": 0})) == [(1.0, 1, 0, 0), (0.0, 0, 0, 1), NONE]
    assert counted(truth, segments("xxyy/xxyy", {"x": 0, "y": 2})) == [(1.0, 1, 0, 0), (0.0, 0, 0, 1), (0.0, 0, 1, 0)]


def test_an_iou_of_a_half_does_not_match_and_one_above_does() -> None:
    truth = segments("aabb", {"a": 0, "b": 1})
    half = segments("x...", {"x": 0})
    assert counted(truth, half) == [(0.0, 0, 1, 1), (0.0, 0, 0, 1), NONE]
    more = segments("xxx.", {"x": 0})  # 2 of 3
    assert counted(truth, more)[0] == (0.666667, 1, 0, 0)


def test_a_split_segment_matches_its_larger_part() -> None:
    truth = segments("aaaaa", {"a": 0})
    found = segments("xxxyy", {"x": 0, "y": 0})
    assert counted(truth, found)[0] == (0.6, 1, 1, 0)
    assert counted(truth, segments("xxyyz", {"x": 0, "y": 0, "z": 0}))[0] == (0.0, 0, 3, 1)


def test_void_is_left_out_of_unions_and_forgives_what_lies_mostly_in_it() -> None:
    truth = segments("aa..bb", {"a": 0, "b": 0})
    assert counted(truth, segments("xxxx..", {"x": 0}))[0] == (1.0, 1, 0, 1)
    assert counted(truth, segments(".yyy..", {"y": 1})) == [(0.0, 0, 0, 2), NONE, NONE]  # 2 of 3 in void
    assert counted(truth, segments("yyyy..", {"y": 1}))[1] == (0.0, 0, 1, 0)  # 2 of 4 are not more than half


def test_crowds_forgive_their_own_category_alone_and_are_never_missed() -> None:
    truth = segments("aaaabb", {"a": 0, "b": 1}, crowd="a")
    assert counted(truth, segments("......", {})) == [NONE, (0.0, 0, 0, 1), NONE]
    assert counted(truth, segments("xxxybb", {"x": 0, "y": 0, "b": 1})) == [NONE, (1.0, 1, 0, 0), NONE]
    assert counted(truth, segments("xxxxbb", {"x": 2, "b": 1}))[2] == (0.0, 0, 1, 0)
    assert counted(truth, segments("..xx xx".replace(" ", ""), {"x": 0}))[0] == (0.0, 0, 1, 0)  # 2 of 4 in the crowd


def test_void_and_two_crowds_of_a_category_forgive_together() -> None:
    truth = segments("a.cbb", {"a": 0, "c": 0, "b": 1}, crowd="ac")
    assert counted(truth, segments("xxxxx", {"x": 0}))[0] == NONE  # 3 of 5
    assert counted(truth, segments("xxx.b", {"x": 0, "b": 1}))[0] == NONE


def test_pictures_without_truth_or_result() -> None:
    nothing = segments("...", {})
    assert counted(nothing, nothing) == [NONE] * 3
    assert counted(segments("aab", {"a": 0, "b": 0}), nothing)[0] == (0.0, 0, 0, 2)
    assert counted(nothing, segments("aab", {"a": 0, "b": 0}))[0] == NONE


def test_metrics_are_means_over_the_categories_that_occur() -> None:
    counts = PanopticCounts(
        np.array([1.5, 0.0, 0.0, 0.8]), np.array([2, 0, 0, 1]), np.array([1, 1, 0, 0]), np.array([1, 0, 0, 1])
    )
    metrics = panoptic_metrics(counts, np.array([True, True, False, False]), ["a", "b", "c", "d"])
    # a: 1.5 / 3, SQ 0.75, RQ 2 / 3; b: 0, found in vain; c does not occur; d: 0.8 / 1.5, SQ 0.8, RQ 2 / 3
    pq_d = 0.8 / 1.5
    expected = {
        **{"PQ": 100 * (0.5 + 0 + pq_d) / 3, "SQ": 100 * (0.75 + 0 + 0.8) / 3, "RQ": 100 * (2 / 3 + 0 + 2 / 3) / 3},
        **{"PQ_th": 25.0, "SQ_th": 37.5, "RQ_th": 100 / 3},
        **{"PQ_st": 100 * pq_d, "SQ_st": 80.0, "RQ_st": 200 / 3},
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["PQ-a"] == pytest.approx(50.0) and metrics["PQ-b"] == 0.0 and np.isnan(metrics["PQ-c"])
    only_stuff = panoptic_metrics(counts, np.zeros(4, dtype=bool), ["a", "b", "c", "d"])
    assert np.isnan(only_stuff["PQ_th"]) and only_stuff["PQ_st"] == only_stuff["PQ"]


# ------------------------------------------------------------------------------------- against the definition


def random_segments(rng: np.random.Generator, base: Segments | None = None) -> Segments:
    """Blocks of ids with noise; with `base` a disturbed copy of it."""
    if base is None:
        ids = np.kron(rng.integers(0, 9, (4, 4)), np.ones((5, 5), dtype=np.int64)) * 1000
        known = sorted(set(ids.ravel().tolist()) - {0})
        crowd = rng.random(len(known)) < 0.2
        return Segments.of(ids, known, rng.integers(0, K, len(known)).tolist(), crowd.tolist())
    moved = np.roll(base.ids, rng.integers(-2, 3, 2), axis=(0, 1)) // 7
    noise = np.kron(rng.integers(0, 12, (10, 10)), np.ones((2, 2), dtype=np.int64))
    ids = np.where(rng.random((20, 20)) < 0.15, noise, moved)
    known = sorted(set(ids.ravel().tolist()) - {0})
    of_base = {int(number) // 7: int(category) for number, category in zip(base.numbers, base.categories)}
    return Segments.of(ids, known, [of_base.get(number, int(rng.integers(0, K))) for number in known])


def slow_counts(truth: Segments, found: Segments) -> list[list[float]]:
    """[IoU sum, TP, FP, FN] of each category by sets of pixels, as the paper's words say."""
    pixels = [(y, x) for y in range(truth.ids.shape[0]) for x in range(truth.ids.shape[1])]

    def regions(part: Segments) -> list[tuple[int, bool, set[tuple[int, int]]]]:
        return [
            (int(category), bool(crowd), {place for place in pixels if part.ids[place] == number})
            for number, category, crowd in zip(part.numbers, part.categories, part.crowd)
        ]

    true_regions, found_regions = regions(truth), regions(found)
    void = set(pixels) - set().union(*(region for _, _, region in true_regions))
    counts = [[0.0, 0, 0, 0] for _ in range(K)]
    matched = set()
    for category, crowd, region in true_regions:
        hit = False
        for index, (own, _, other) in enumerate(found_regions):
            judged = other - void
            iou = len(region & judged) / len(region | judged)
            if own == category and not crowd and iou > 0.5:
                hit = True
                matched.add(index)
                counts[category][0] += iou
                counts[category][1] += 1
        counts[category][3] += not hit and not crowd
    for index, (category, _, region) in enumerate(found_regions):
        forgiven = void.union(*(other for own, crowd, other in true_regions if crowd and own == category))
        counts[category][2] += index not in matched and len(region & forgiven) <= 0.5 * len(region)
    return counts


def test_random_maps_count_as_the_definition_says() -> None:
    total = np.zeros((K, 4))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        truth = random_segments(rng)
        found = random_segments(rng, truth)
        counts = count_segments(truth, found, K)
        columns = np.stack([counts.iou, counts.matched, counts.extra, counts.missed], axis=1)
        np.testing.assert_allclose(columns, slow_counts(truth, found), atol=1e-12)
        total += columns
    assert total.min() > 1  # every kind of count occurs in every category
