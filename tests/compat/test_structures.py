"""Boxes, instances and image lists."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, ImageList, Instances, pairwise_ioa, pairwise_iou
from torchvision.ops import box_iou

REFUSED = (ValueError, AssertionError)  # upstream asserts


@pytest.fixture
def boxes() -> Boxes:
    return Boxes(torch.tensor([[0, 0, 10, 20], [5, 5, 5, 9], [-4, 2, 30, 40]]))


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "array", "tensor"])
def test_box_mode_keeps_the_type(make: Any) -> None:
    box = make([1.0, 2.0, 3.0, 5.0])
    converted = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(converted) is type(box)
    assert [float(value) for value in converted] == [1, 2, 4, 7]
    back = BoxMode.convert(converted, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert [float(value) for value in back] == [1, 2, 3, 5]
    assert [float(value) for value in box] == [1, 2, 3, 5]  # the input is unchanged


def test_box_mode_converts_many_in_their_dtype() -> None:
    many = np.array([[1, 2, 3, 5], [0, 0, 0, 0]], dtype=np.float64)
    converted = BoxMode.convert(many, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert converted.dtype == np.float64
    assert converted.tolist() == [[1, 2, 4, 7], [0, 0, 0, 0]]


def test_box_mode_is_an_int_for_json() -> None:
    assert BoxMode.XYWH_ABS == 1
    assert BoxMode(0) is BoxMode.XYXY_ABS


def test_box_mode_refuses_relative_boxes() -> None:
    with pytest.raises((NotImplementedError, AssertionError)):
        BoxMode.convert([0.1, 0.1, 0.2, 0.2], BoxMode.XYXY_REL, BoxMode.XYWH_ABS)


def test_boxes_are_float_and_may_be_empty() -> None:
    assert Boxes(torch.tensor([[1, 2, 3, 4]])).tensor.dtype == torch.float32
    assert Boxes(torch.tensor([])).tensor.shape == (0, 4)
    with pytest.raises(REFUSED):
        Boxes(torch.zeros(2, 5))


def test_boxes_measure(boxes: Boxes) -> None:
    assert boxes.area().tolist() == [200, 0, 34 * 38]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=15).tolist() == [False, False, True]
    assert boxes.get_centers().tolist() == [[5, 10], [5, 7], [13, 21]]
    assert boxes.inside_box((30, 20)).tolist() == [True, True, False]
    assert boxes.inside_box((30, 20), boundary_threshold=20).tolist() == [True, True, True]


def test_boxes_clip_and_scale_in_place(boxes: Boxes) -> None:
    boxes.clip((10, 8))
    assert boxes.tensor.tolist() == [[0, 0, 8, 10], [5, 5, 5, 9], [0, 2, 8, 10]]
    boxes.scale(2, 3)
    assert boxes.tensor[0].tolist() == [0, 0, 16, 30]


def test_boxes_clip_refuses_nan() -> None:
    with pytest.raises(REFUSED):
        Boxes(torch.tensor([[0.0, 0.0, float("nan"), 1.0]])).clip((5, 5))


def test_boxes_index_cat_and_iterate(boxes: Boxes) -> None:
    assert boxes[0].tensor.shape == (1, 4)
    assert boxes[-1].tensor.tolist() == [[-4, 2, 30, 40]]
    assert len(boxes[boxes.nonempty()]) == 2
    assert len(boxes[torch.tensor([2, 0, 0, 1])]) == 4
    assert len(boxes[1:]) == 2
    assert len(Boxes.cat([boxes, boxes[:1]])) == 4
    assert len(Boxes.cat([])) == 0
    assert [tuple(box.shape) for box in boxes] == [(4,)] * 3
    clone = boxes.clone()
    clone.tensor[:] = 0
    assert boxes.tensor[0, 2] == 10


def test_pairwise_overlaps(boxes: Boxes) -> None:
    torch.manual_seed(0)
    corners = torch.rand(7, 2) * 20
    others = Boxes(torch.cat((corners, corners + torch.rand(7, 2) * 20), dim=1))
    assert torch.allclose(pairwise_iou(others, others), box_iou(others.tensor, others.tensor))
    assert pairwise_iou(boxes, boxes)[1].tolist() == [0, 0, 0]  # an empty box overlaps nothing, not even itself
    assert pairwise_ioa(boxes[2], boxes)[0].tolist() == pytest.approx([180 / 200, 0, 1])
    assert pairwise_iou(boxes, Boxes(torch.zeros(0, 4))).shape == (3, 0)


def instances(count: int = 3, size: tuple[int, int] = (4, 6)) -> Instances:
    found = Instances(size)
    found.gt_boxes = Boxes(torch.arange(count * 4).reshape(count, 4))
    found.scores = torch.arange(count) / 10
    found.names = [f"n{index}" for index in range(count)]
    return found


def test_instances_fields() -> None:
    found = instances()
    assert len(found) == 3
    assert found.image_size == (4, 6)
    assert found.has("scores") and not found.has("masks")
    assert set(found.get_fields()) == {"gt_boxes", "scores", "names"}
    found.remove("names")
    assert not found.has("names")
    with pytest.raises(AttributeError, match="masks"):
        found.masks  # noqa: B018
    with pytest.raises(REFUSED):
        found.other = torch.zeros(2)
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(found)


@pytest.mark.parametrize(
    ("item", "expected"),
    [(0, ["n0"]), (-1, ["n2"]), (slice(1, None), ["n1", "n2"])],
)
def test_instances_index_every_field(item: Any, expected: list[str]) -> None:
    selected = instances()[item]
    assert selected.names == expected
    assert len(selected.gt_boxes) == len(selected.scores) == len(expected)


def test_instances_index_by_tensor() -> None:
    found = instances()
    found.remove("names")  # lists cannot be indexed by tensors
    assert found[found.scores > 0.05].scores.tolist() == pytest.approx([0.1, 0.2])
    assert found[torch.tensor([2, 0])].scores.tolist() == pytest.approx([0.2, 0.0])
    assert len(found[found.scores > 9]) == 0
    with pytest.raises(IndexError):
        found[3]


def test_instances_cat() -> None:
    merged = Instances.cat([instances(2), instances(1)])
    assert len(merged) == 3
    assert merged.names == ["n0", "n1", "n0"]
    assert merged.gt_boxes.tensor.shape == (3, 4)
    with pytest.raises(REFUSED):
        Instances.cat([instances(1), instances(1, size=(5, 5))])


def test_instances_move_copy_and_pickle() -> None:
    found = instances()
    assert found.to("cpu").names == found.names
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert other.image_size == found.image_size
        assert torch.equal(other.gt_boxes.tensor, found.gt_boxes.tensor)
    assert "num_instances=3" in str(found)


def test_image_list_pads_right_and_bottom() -> None:
    pictures = [torch.ones(3, 5, 7), torch.ones(3, 6, 4)]
    batch = ImageList.from_tensors(pictures, size_divisibility=4, pad_value=9.0)
    assert batch.tensor.shape == (2, 3, 8, 8)
    assert [tuple(size) for size in batch.image_sizes] == [(5, 7), (6, 4)]
    assert len(batch) == 2
    assert torch.equal(batch[0], pictures[0])
    assert torch.equal(batch[1], pictures[1])
    assert (batch.tensor[0, :, 5:] == 9).all() and (batch.tensor[0, :, :, 7:] == 9).all()


def test_image_list_square_and_single_channel() -> None:
    maps = [torch.zeros(5, 7, dtype=torch.long), torch.zeros(6, 4, dtype=torch.long)]
    constraints = {"square_size": 10, "size_divisibility": 4}
    batch = ImageList.from_tensors(maps, pad_value=255, padding_constraints=constraints)
    assert batch.tensor.shape == (2, 12, 12)
    assert batch.tensor.dtype == torch.long
    assert batch.tensor[0, 11, 11] == 255
    assert batch.to("cpu").device == torch.device("cpu")


def test_image_list_needs_pictures() -> None:
    with pytest.raises(REFUSED):
        ImageList.from_tensors([])
    with pytest.raises(REFUSED):
        ImageList.from_tensors([torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)])
