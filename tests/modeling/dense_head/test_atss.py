"""The assignment against a slow one that follows algorithm 1 of the paper step by step."""

import math
import statistics

import grounding_dino  # noqa: F401
from grounding_dino.modeling.dense_head.anchors import place_anchors
from grounding_dino.modeling.dense_head.atss import BACKGROUND, assign_places, centerness_of

import pytest
import torch
from torch import Tensor

STRIDES = [8, 16, 32, 64, 128]


def anchors_of(height: int, width: int, strides: list[int] = STRIDES, scale: float = 8.0) -> list[Tensor]:
    """Of a picture that is padded to a multiple of 32."""
    height, width = -(-height // 32) * 32, -(-width // 32) * 32
    sizes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    return place_anchors(sizes, strides, scale, torch.zeros(1))


def random_boxes(count: int, height: int, width: int, seed: int, largest: float = 1.0) -> Tensor:
    """Boxes of all sizes, log-uniform from 3 pixels to `largest` of the picture, which may reach out of it."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    limit = math.log(largest * max(height, width) / 3)
    sides = 3 * (torch.rand(count, 2, generator=generator) * limit).exp()
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=1)


# -------------------------------------------------------------------------------------------- the slow version


def iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow(levels: list[Tensor], boxes: Tensor, count: int) -> list[int]:
    places = [[x, y, x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in torch.cat(levels).double().tolist()]
    best, assigned = [-1.0] * len(places), [BACKGROUND] * len(places)
    for number, box in enumerate(boxes.double().tolist()):
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, first = [], 0
        for level in levels:
            members = range(first, first + len(level))
            candidates += sorted(members, key=lambda i: math.dist(places[i][:2], centre))[:count]
            first += len(level)
        overlaps = [iou(places[i][2:], box) for i in candidates]
        threshold = statistics.mean(overlaps) + (statistics.stdev(overlaps) if len(overlaps) > 1 else 0)
        for i, overlap in zip(candidates, overlaps):
            x, y = places[i][:2]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside and overlap > best[i]:
                best[i], assigned[i] = overlap, number
    return assigned


# ------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("height", "width", "count", "largest"), [(200, 264, 12, 1.0), (64, 96, 5, 3.0)])
def test_equals_the_slow_version(seed: int, height: int, width: int, count: int, largest: float) -> None:
    """Also objects larger than the picture, and levels with fewer places than candidates."""
    levels, boxes = anchors_of(height, width), random_boxes(count, height, width, seed, largest)
    found = assign_places(levels, boxes)
    assert found.dtype == torch.int64
    assert found.tolist() == slow(levels, boxes, 9)
    assert len(found.unique()) > 2


@pytest.mark.parametrize("num_candidates", [1, 2, 100])
def test_number_of_candidates(num_candidates: int) -> None:
    levels, boxes = anchors_of(96, 128), random_boxes(6, 96, 128, seed=3)
    assert assign_places(levels, boxes, num_candidates).tolist() == slow(levels, boxes, num_candidates)


def test_no_object() -> None:
    levels = anchors_of(64, 64)
    found = assign_places(levels, torch.zeros(0, 4))
    assert found.dtype == torch.int64 and found.tolist() == [BACKGROUND] * sum(len(level) for level in levels)


def test_an_object_between_centres_gets_no_place() -> None:
    """Centres of stride 8 lie at 4, 12, 20, ...; an object of 6 pixels between them holds none."""
    assert assign_places(anchors_of(64, 64), torch.tensor([[5.0, 5, 11, 11]])).unique().tolist() == [BACKGROUND]


def test_an_object_that_most_candidates_overlap_alike_gets_no_place() -> None:
    """By the paper's rule: 9 of 16 candidates overlap it by 0.09 and the others less; 0.095 would be enough."""
    levels, box = anchors_of(20, 31), torch.tensor([[2.0, 3, 28, 17]])
    assert assign_places(levels, box).unique().tolist() == slow(levels, box, 9)[:1] == [BACKGROUND]


@pytest.mark.parametrize(
    "box", [[300.0, 300, 340, 350], [-80, -80, -10, -10], [10, 10, 10, 10], [12, 12, 12, 40], [30, 30, 20, 20]]
)
def test_objects_outside_or_without_area_get_no_place(box: list[float]) -> None:
    """Nor do they take one from others."""
    levels, other = anchors_of(64, 64), [4.0, 6, 50, 44]
    alone = assign_places(levels, torch.tensor([other]))
    assert assign_places(levels, torch.tensor([box])).eq(BACKGROUND).all()
    assert torch.equal(assign_places(levels, torch.tensor([other, box])), alone)


def test_a_single_place_learns_what_it_lies_in() -> None:
    """One number has no deviation: it is its own mean, and enough."""
    levels = anchors_of(32, 32, strides=[32], scale=1.0)
    assert [len(level) for level in levels] == [1]
    assert assign_places(levels, torch.tensor([[3.0, 4, 30, 25]])).tolist() == [0]
    assert assign_places(levels, torch.tensor([[1.0, 1, 9, 9]])).tolist() == [BACKGROUND]


def test_a_place_wanted_twice_learns_what_it_overlaps_most() -> None:
    levels = anchors_of(64, 64)
    smaller, larger = [20.0, 20, 52, 52], [0.0, 0, 64, 64]
    one, other = (assign_places(levels, torch.tensor([box])) for box in (smaller, larger))
    shared = (one == 0) & (other == 0)
    together = assign_places(levels, torch.tensor([smaller, larger]))
    assert shared.any()
    assert torch.equal(together, torch.tensor(slow(levels, torch.tensor([smaller, larger]), 9)))
    exchanged = assign_places(levels, torch.tensor([larger, smaller]))
    assert torch.equal(exchanged, torch.where(together == BACKGROUND, BACKGROUND, 1 - together))


def test_of_equal_objects_the_first_is_learned() -> None:
    levels, box = anchors_of(64, 64), [9.0, 7, 50, 47]
    found = assign_places(levels, torch.tensor([box, box, box]))
    assert found.unique().tolist() == [BACKGROUND, 0]
    assert torch.equal(found, assign_places(levels, torch.tensor([box])))


def test_equally_near_places_are_chosen_alike_every_time() -> None:
    """The centre of this object is a corner of cells: 4 and then 8 places are equally near, of which 9 count."""
    levels, box = anchors_of(64, 64), torch.tensor([[8.0, 8, 56, 56]])
    found = assign_places(levels, box)
    assert (found == 0).sum() > 0
    assert all(torch.equal(assign_places(levels, box), found) for _ in range(3))


def test_memory_grows_with_candidates_not_with_overlaps_of_all_places() -> None:
    """300 objects in 20,000 places: beside the table of who wants what there is little."""
    levels, boxes = anchors_of(1024, 1000), random_boxes(300, 1024, 1000, seed=0)
    with torch.profiler.profile(profile_memory=True) as profile:
        found = assign_places(levels, boxes)
    table = 4 * len(found) * len(boxes)
    assert len(found) > 20_000
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= 1.1 * table


def test_centerness_by_hand() -> None:
    box = torch.tensor([[0.0, 0, 8, 4]]).expand(5, -1)
    points = torch.tensor([[4.0, 2], [2, 2], [2, 1], [0, 2], [8, 4]])
    expected = [1.0, math.sqrt(2 / 6), math.sqrt(2 / 6 * 1 / 3), 0.0, 0.0]
    assert centerness_of(points, box).tolist() == pytest.approx(expected)


def test_centerness_is_a_number_of_0_to_1_wherever_a_place_learns() -> None:
    levels, boxes = anchors_of(200, 264), random_boxes(40, 200, 264, seed=1)
    found = assign_places(levels, boxes)
    place = found != BACKGROUND
    values = centerness_of(torch.cat(levels)[place, :2], boxes[found[place]])
    assert len(values) > 40 and values.isfinite().all() and (values > 0).all() and (values <= 1).all()
    assert centerness_of(torch.tensor([[-1.0, 2], [20, 20]]), torch.tensor([[0.0, 0, 8, 4]]).expand(2, -1)).eq(0).all()
