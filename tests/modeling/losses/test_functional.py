from grounding_dino.modeling.losses.functional import point_sample, sample_masks, sigmoid_focal_loss

import pytest
import torch
import torchvision


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_equals_torchvision(alpha: float, gamma: float) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(4, 7) * 4).requires_grad_()
    targets = torch.rand(4, 7) < 0.3
    loss = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    expected = torchvision.ops.sigmoid_focal_loss(logits, targets.float(), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(grad, expected_grad)


def test_invalid_entries_give_no_loss_and_no_gradient() -> None:
    logits = torch.tensor([[0.5, float("-inf"), 3.0], [1.0, float("-inf"), float("-inf")]], requires_grad=True)
    valid = torch.tensor([[True, False, True], [True, False, False]])
    loss = sigmoid_focal_loss(logits, torch.zeros(2, 3, dtype=torch.bool), valid)
    loss.sum().backward()
    assert loss[~valid].eq(0).all() and loss[valid].gt(0).all()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[~valid].eq(0).all() and logits.grad[valid].gt(0).all()


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([-5000.0, 5000.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([True, False]))
    loss.sum().backward()
    assert loss.tolist() == [1250.0, 3750.0]
    assert logits.grad is not None and logits.grad.tolist() == [-0.25, 0.75]


def test_half_precision_is_computed_in_float32() -> None:
    logits = torch.randn(5).bfloat16()
    targets = torch.zeros(5, dtype=torch.bool)
    loss = sigmoid_focal_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits.float(), targets))


@pytest.mark.parametrize("shared", [True, False])
def test_masks_are_sampled_as_maps_are(shared: bool) -> None:
    """Cells looked up one by one against the interpolation of the map in floating point, borders included."""
    torch.manual_seed(0)
    masks = torch.rand(3, 5, 7) > 0.5
    points = torch.rand(1 if shared else 3, 200, 2) * 1.2 - 0.1
    expected = point_sample(masks[:, None].float(), points.expand(3, -1, -1))[:, 0]
    torch.testing.assert_close(sample_masks(masks, points), expected, atol=1e-5, rtol=0)
    assert sample_masks(masks[:0], points[:0] if not shared else points).shape == (0, 200)
