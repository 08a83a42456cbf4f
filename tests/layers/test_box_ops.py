from grounding_dino.layers.box_ops import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    inverse_sigmoid,
    paired_generalized_box_iou,
)

import pytest
import torch
import torchvision


def random_boxes(*shape: int) -> torch.Tensor:
    """XYXY boxes in [0, 1]."""
    corners = torch.rand(*shape, 2, 2)
    return torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)


def test_conversion_round_trip() -> None:
    boxes = random_boxes(3, 5)
    torch.testing.assert_close(box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(boxes)), boxes)
    assert box_xyxy_to_cxcywh(torch.tensor([10.0, 20.0, 30.0, 60.0])).tolist() == [20, 40, 20, 40]


def test_overlaps_equal_torchvision() -> None:
    boxes1, boxes2 = random_boxes(20), random_boxes(7)
    torch.testing.assert_close(box_area(boxes1), torchvision.ops.box_area(boxes1))
    torch.testing.assert_close(box_iou(boxes1, boxes2), torchvision.ops.box_iou(boxes1, boxes2))
    giou = torchvision.ops.generalized_box_iou(boxes1, boxes2)
    torch.testing.assert_close(generalized_box_iou(boxes1, boxes2), giou)
    torch.testing.assert_close(paired_generalized_box_iou(boxes1[:7], boxes2), giou[:7].diagonal())


def test_overlaps_broadcast_over_leading_axes() -> None:
    boxes1, boxes2 = random_boxes(2, 3, 5), random_boxes(3, 4)
    giou = generalized_box_iou(boxes1, boxes2)
    assert giou.shape == (2, 3, 5, 4)
    torch.testing.assert_close(giou[1, 2], generalized_box_iou(boxes1[1, 2], boxes2[2]))


def test_overlaps_do_not_depend_on_the_unit() -> None:
    boxes1, boxes2 = random_boxes(6), random_boxes(6)
    scale = torch.tensor([1333.0, 800.0, 1333.0, 800.0])
    torch.testing.assert_close(
        generalized_box_iou(boxes1, boxes2), generalized_box_iou(boxes1 * scale, boxes2 * scale), atol=1e-5, rtol=1e-5
    )


def test_boxes_without_area_are_finite_with_gradient() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    assert box_iou(point, point).item() == 0
    giou = paired_generalized_box_iou(point, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    giou.sum().backward()
    assert giou.isfinite().all() and point.grad is not None and point.grad.isfinite().all()


def test_empty_sets() -> None:
    assert generalized_box_iou(random_boxes(0), random_boxes(3)).shape == (0, 3)
    assert box_iou(random_boxes(3), random_boxes(0)).shape == (3, 0)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid_clamps_each_side_on_its_own(eps: float) -> None:
    x = torch.tensor([-1.0, 0.0, eps / 2, 0.3, 1 - eps / 4, 1.0, 2.0], dtype=torch.float64)
    low, high = torch.tensor(eps, dtype=torch.float64).log(), -torch.tensor(eps, dtype=torch.float64).log()
    expected = torch.stack(
        [low, low, low - torch.tensor(1 - eps / 2).double().log(), torch.tensor(0.3).double().logit(), high, high, high]
    )
    torch.testing.assert_close(inverse_sigmoid(x, eps), expected, atol=1e-3, rtol=0)
    assert inverse_sigmoid(torch.tensor(1.0), eps).item() == pytest.approx(high.item())


def test_half_precision_is_computed_in_float32() -> None:
    boxes = random_boxes(4)
    half = boxes.bfloat16()
    assert generalized_box_iou(half, half).dtype == torch.float32
    assert inverse_sigmoid(half, 1e-3).dtype == torch.float32
    assert inverse_sigmoid(boxes.double(), 1e-3).dtype == torch.float64
    torch.testing.assert_close(generalized_box_iou(half, half), generalized_box_iou(half.float(), half.float()))
