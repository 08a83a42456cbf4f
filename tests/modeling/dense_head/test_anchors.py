"""Anchors and boxes relative to them; the authors count the last pixel as part of a box ("inclusive")."""

import math

import grounding_dino  # noqa: F401
from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy
from grounding_dino.modeling.dense_head.anchors import clip_boxes, decode_boxes, place_anchors

import pytest
import torch
from torch import Tensor

STRIDES = [8, 16, 32, 64, 128]
SIZES = [(9, 12), (5, 6), (3, 3), (2, 2), (1, 1)]


def place(**rest: Tensor) -> list[Tensor]:
    return place_anchors(SIZES, STRIDES, 8.0, rest.get("like", torch.zeros(1)))


def test_the_published_example() -> None:
    """[-28, -28, 35, 35] inclusive, of 64 pixels, at the first place of stride 8."""
    assert box_cxcywh_to_xyxy(place()[0][0]).tolist() == [-28, -28, 36, 36]


def test_places_run_row_by_row() -> None:
    for anchors, (height, width), stride in zip(place(), SIZES, STRIDES, strict=True):
        inclusive_centres = [
            [stride * x + (stride - 1) / 2, stride * y + (stride - 1) / 2] for y in range(height) for x in range(width)
        ]
        assert (anchors[:, :2] - 0.5).tolist() == inclusive_centres
        assert anchors[:, 2:].unique().tolist() == [8 * stride]
        assert anchors.dtype == torch.float32


def test_half_precision_predictions_have_exact_anchors() -> None:
    """A centre such as 1028 + 0.5 is none of float16's numbers."""
    for ours, expected in zip(place(like=torch.zeros(1, dtype=torch.bfloat16)), place()):
        assert torch.equal(ours, expected)


def inclusive_decode(deltas: list[float], anchor: list[float]) -> list[float]:
    """The README's formula, with its anchors and its boxes, in plain numbers."""
    x1, y1, x2, y2 = anchor
    width, height = x2 - x1 + 1, y2 - y1 + 1
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, (10, 10, 5, 5)))
    centre_x, centre_y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
    new_width, new_height = (side * math.exp(min(d, math.log(1000 / 16))) for side, d in ((width, dw), (height, dh)))
    return [
        *(centre_x - (new_width - 1) / 2, centre_y - (new_height - 1) / 2),
        *(centre_x + (new_width - 1) / 2, centre_y + (new_height - 1) / 2),
    ]


def test_decoding_equals_the_inclusive_formula() -> None:
    torch.manual_seed(0)
    anchors = torch.cat(place()).double()
    deltas = torch.randn(len(anchors), 4, dtype=torch.float64) * torch.tensor([10.0, 10, 5, 15])
    deltas[::7, 2:] = 40  # beyond the limit of growth
    found = clip_boxes(decode_boxes(deltas, anchors), (70, 90))
    for ours, delta, anchor in zip(found.tolist(), deltas.tolist(), anchors.tolist(), strict=True):
        x, y, w, h = anchor
        inclusive = inclusive_decode(delta, [x - w / 2, y - h / 2, x + w / 2 - 1, y + h / 2 - 1])
        clipped = [min(max(value, 0), limit) for value, limit in zip(inclusive, (89, 69, 89, 69))]
        assert ours == pytest.approx([*clipped[:2], clipped[2] + 1, clipped[3] + 1], abs=1e-4)


def test_no_deltas_are_the_anchor() -> None:
    anchors = place()[1]
    assert torch.equal(decode_boxes(torch.zeros(len(anchors), 4), anchors), box_cxcywh_to_xyxy(anchors))


def test_growth_is_limited_and_finite() -> None:
    anchor = torch.tensor([[4.0, 4, 64, 64]])
    low, high = decode_boxes(torch.tensor([[0, 0, 1e30, -1e30]]), anchor)[0].reshape(2, 2)
    torch.testing.assert_close((high - low)[0], torch.tensor(64 * 1000 / 16), rtol=1e-5, atol=0)
    assert (high - low)[1] == 0


def test_half_precision_deltas_are_decoded_in_float32() -> None:
    anchor = torch.tensor([[1028.5, 4, 64, 64]])
    deltas = torch.tensor([[0.5, -0.25, 1.0, 0.125]])
    for dtype in (torch.float16, torch.bfloat16):
        found = decode_boxes(deltas.to(dtype), anchor)
        assert found.dtype == torch.float32 and torch.equal(found, decode_boxes(deltas, anchor))


@pytest.mark.parametrize("size", [(70, 90), (1, 1), (1, 40)])
def test_clipping_leaves_a_pixel(size: tuple[int, int]) -> None:
    height, width = size
    boxes = torch.tensor([[-50.0, -40, -10, -5], [500, 600, 700, 800], [-5, -5, 500, 500], [0.25, 0.25, 0.5, 0.75]])
    left, top, right, bottom = clip_boxes(boxes, size).unbind(-1)
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    assert (right[:3] - left[:3] >= 1).all() and (bottom[:3] - top[:3] >= 1).all()
    assert clip_boxes(boxes, size)[0].tolist() == [0, 0, 1, 1]
    assert clip_boxes(boxes, size)[1].tolist() == [width - 1, height - 1, width, height]
    assert clip_boxes(boxes, size)[2].tolist() == [0, 0, width, height]
