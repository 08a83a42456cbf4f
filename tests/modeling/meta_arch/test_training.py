"""Training the whole model: losses, denoising, gradients of every parameter, targets that do not fit."""

from collections.abc import Callable
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.structures import DecoderOutput

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

MakePicture = Callable[..., dict[str, Any]]
BOXES = [[5.0, 5.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]]


@pytest.fixture
def batch(annotated: MakePicture) -> list[dict[str, Any]]:
    """Two objects; none; one, named by a caption's phrase."""
    return [
        annotated(64, 80, BOXES, [1, 0], seed=1, categories=["cat", "red dog"]),
        annotated(48, 60, [], [], seed=2, categories=["bus", "cat"]),
        annotated(60, 44, BOXES[:1], [0], seed=3, caption="a red dog runs", phrases=[(2, 9)]),
    ]


@pytest.fixture
def empty_batch(annotated: MakePicture) -> list[dict[str, Any]]:
    return [annotated(64, 80, [], [], seed=1, categories=["cat"]), annotated(48, 60, [], [], seed=2, caption="a bus")]


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_losses(tiny_model: nn.Module, batch: list[dict[str, Any]]) -> None:
    losses = tiny_model.train()(batch)
    stages = ["", "_0", "_encoder", "_denoising", "_denoising_0"]
    assert set(losses) == {f"loss_{kind}{stage}" for kind in ("class", "l1", "giou") for stage in stages}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(tiny_model) == []
    assert tiny_model.denoising.label_embedding.weight.grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in tiny_model.parameters())


@pytest.mark.parametrize("denoising", [True, False])
@pytest.mark.parametrize("scale", ["none", "learned"])
def test_every_parameter_has_a_gradient_without_targets(
    tiny_cfg: CfgNode, empty_batch: list[dict[str, Any]], denoising: bool, scale: str
) -> None:
    """Or the processes of a distributed training would wait for each other forever."""
    tiny_cfg.MODEL.DENOISING.ENABLED_ON = denoising
    tiny_cfg.MODEL.CLASS_HEAD.SCALE = scale
    tiny_cfg.MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON = denoising
    model = build_model(tiny_cfg).train()
    losses = model(empty_batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(loss == 0 for name, loss in losses.items() if "class" not in name or "denoising" in name)
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_frozen_text_encoder_has_no_gradient(tiny_cfg: CfgNode, batch: list[dict[str, Any]]) -> None:
    tiny_cfg.MODEL.TEXT_ENCODER.FREEZE_ON = True
    model = build_model(tiny_cfg).train()
    sum(model(batch).values()).backward()
    assert without_gradient(model) == []
    assert all(p.grad is None for p in model.text_encoder.bert.parameters())
    assert model.text_encoder.projection.weight.grad is not None


def test_noised_ground_truth_does_not_reach_the_matching_queries(tiny_model: nn.Module, annotated: MakePicture) -> None:
    """Other boxes and labels for the denoising queries; the matching queries' outputs stay bit for bit."""
    outputs: list[DecoderOutput] = []
    tiny_model.transformer_decoder.register_forward_hook(lambda module, args, output: outputs.append(output))
    others = [[[40.0, 2.0, 70.0, 20.0], [1.0, 30.0, 79.0, 63.0]], BOXES]
    for boxes, classes in zip([BOXES, others[0]], ([0, 1], [1, 1])):
        torch.manual_seed(0)
        with torch.no_grad():
            tiny_model.train()([annotated(64, 80, boxes, classes, categories=["cat", "red dog"])])
    first, second = outputs
    assert (first.denoising[-1].pred_boxes - second.denoising[-1].pred_boxes).abs().max() > 1e-3
    for one, other in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one.pred_boxes, other.pred_boxes)
        assert torch.equal(one.pred_logits, other.pred_logits)


def test_targets(tiny_model: nn.Module, batch: list[dict[str, Any]]) -> None:
    (prompt,) = tiny_model.prompts_of(batch[0])  # [CLS] cat . red dog . [SEP]
    target = tiny_model.target_of(batch[0], prompt, (64, 80), 9)
    expected = [[17.5 / 80, 22.5 / 64, 25 / 80, 35 / 64], [40 / 80, 30 / 64, 40 / 80, 40 / 64]]
    torch.testing.assert_close(target.boxes, torch.tensor(expected))
    assert target.labels.tolist() == [1, 0]
    assert target.positive_map.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]]
    (prompt,) = tiny_model.prompts_of(batch[2])  # [CLS] a red dog runs . [SEP]
    assert tiny_model.target_of(batch[2], prompt, (60, 44), 7).positive_map.tolist() == [[0, 0, 1, 1, 0, 0, 0]]


def test_bfloat16_autocast(tiny_model: nn.Module, batch: list[dict[str, Any]]) -> None:
    tiny_model.train()
    torch.manual_seed(0)
    expected = tiny_model(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = tiny_model(batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(sum(losses.values()), sum(expected.values()), atol=0, rtol=0.1)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny_model.parameters())


def test_checkpointing_changes_no_loss(tiny_cfg: CfgNode, batch: list[dict[str, Any]]) -> None:
    totals, gradients = [], []
    for on in (False, True):
        for part in (tiny_cfg.MODEL.SWIN, tiny_cfg.MODEL.PIXEL_DECODER, tiny_cfg.MODEL.TRANSFORMER_DECODER):
            part.ACTIVATION_CHECKPOINTING_ON = on
        torch.manual_seed(0)
        model = build_model(tiny_cfg).train()
        total = sum(model(batch).values())
        total.backward()
        totals.append(total.detach())
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*totals)
    torch.testing.assert_close(*gradients)


def test_fewer_image_tokens_than_queries(tiny_model: nn.Module, annotated: MakePicture) -> None:
    losses = tiny_model.train()([annotated(9, 9, [[1.0, 1.0, 8.0, 8.0]], [0], categories=["cat"])])
    assert all(loss.isfinite() for loss in losses.values())


def test_classes_outside_the_prompt(tiny_model: nn.Module, annotated: MakePicture) -> None:
    tiny_model.train()
    for classes in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=r"gt_classes of the picture with file_name 'a.png' run .* 2 categories"):
            tiny_model([annotated(64, 80, BOXES, classes, categories=["cat", "dog"], file_name="a.png")])
    with pytest.raises(ValueError, match="its prompt names 0 categories or phrases"):
        tiny_model([annotated(64, 80, BOXES, [0, 0], caption="a dog")])


def test_other_unusable_training_input(tiny_model: nn.Module, picture: MakePicture, annotated: MakePicture) -> None:
    tiny_model.train()
    with pytest.raises(ValueError, match="a picture has no 'instances', which training needs"):
        tiny_model([picture(64, 80, categories=["cat"])])
    many = [f"thing number {i}" for i in range(100)]
    with pytest.raises(ValueError, match=r"the 100 categories of a picture take more than 256 tokens; sample fewer"):
        tiny_model([annotated(64, 80, [], [], categories=many)])
