"""Squares over a picture, and what becomes of boxes that several of them show."""

from __future__ import annotations

from typing import Any

from grounding_dino.labelling.tiles import Tile, class_wise_nms, moved, tiles_of, without_pieces
from grounding_dino.structures import RleMasks

import numpy as np
import pytest
import torch


def detection(box: list[float], score: float = 0.5, label: str = "cat", **more: Any) -> dict[str, Any]:
    return {"label": label, "score": score, "box": box, **more}


@pytest.mark.parametrize(("height", "width"), [(100, 101), (1000, 700), (641, 640), (2000, 90), (640, 5000)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_picture_and_overlap(height: int, width: int, overlap: float) -> None:
    seen = np.zeros((height, width), dtype=int)
    tiles = tiles_of(height, width, 100, overlap)
    for tile in tiles:
        assert tile.x1 - tile.x0 == min(100, width) and tile.y1 - tile.y0 == min(100, height)
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] += 1
    assert seen.min() == 1 and len(set(tiles)) == len(tiles)
    columns = sorted({(tile.x0, tile.x1) for tile in tiles})
    assert all(before[1] - after[0] >= int(100 * overlap) for before, after in zip(columns, columns[1:]))


def test_a_picture_no_larger_than_a_tile_has_none() -> None:
    assert tiles_of(100, 80, 100, 0.2) == []


def test_boxes_and_masks_move_into_the_picture() -> None:
    mask = torch.zeros(1, 50, 50, dtype=torch.bool)
    mask[0, 10:20, 5:15] = True
    (found,) = moved([detection([5, 10, 15, 20], mask=RleMasks.encode(mask)[0])], Tile(30, 40, 80, 90), 100, 200)
    assert found["box"] == [35, 50, 45, 60] and not found["cut"]
    whole = RleMasks([found["mask"]]).decode()[0]
    assert whole.shape == (100, 200) and whole.nonzero().min(0).values.tolist() == [50, 35]
    assert int(whole.sum()) == 100 and whole[50:60, 35:45].all()


def test_only_borders_inside_of_the_picture_cut() -> None:
    tile = Tile(0, 0, 50, 50)
    boxes = [[0, 5, 10, 15], [40, 5, 50, 15], [5, 48.5, 10, 49.0], [5, 5, 45, 45]]
    assert [d["cut"] for d in moved([detection(box) for box in boxes], tile, 100, 50)] == [False, False, True, False]
    assert [d["cut"] for d in moved([detection(box) for box in boxes], tile, 50, 100)] == [False, True, False, False]


def test_a_piece_goes_where_a_larger_box_of_its_class_holds_it() -> None:
    whole = detection([10, 10, 90, 50], 0.4, cut=False)
    piece = detection([10, 10, 50, 50], 0.9, cut=True)
    other = detection([10, 10, 50, 50], 0.9, "dog", cut=True)
    alone = detection([150, 10, 200, 50], 0.9, cut=True)
    small = detection([20, 20, 30, 30], 0.3, cut=False)  # a cat before a cat
    kept = without_pieces([whole, piece, other, alone, small])
    assert [(d["label"], d["box"][0]) for d in kept] == [("cat", 10), ("dog", 10), ("cat", 150), ("cat", 20)]
    assert all("cut" not in d for d in kept)


def test_of_two_pieces_of_one_object_the_larger_stays() -> None:
    left, right = detection([0, 0, 60, 40], cut=True), detection([40, 0, 70, 40], 0.9, cut=True)
    assert [d["box"] for d in without_pieces([left, right])] == [[0, 0, 60, 40]]


def test_suppression_is_within_a_class_whatever_its_spelling() -> None:
    found = [
        detection([0, 0, 10, 10], 0.5),
        detection([0, 0, 10, 11], 0.9, "Cat "),
        detection([0, 0, 10, 10], 0.7, "dog"),
        detection([5, 5, 15, 15], 0.6),
    ]
    assert [d["score"] for d in class_wise_nms(found, 0.5)] == [0.9, 0.7, 0.6]
    assert class_wise_nms(found, None) == found
    assert class_wise_nms([], 0.5) == []
