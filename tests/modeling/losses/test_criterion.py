import dataclasses
from collections.abc import Callable

from grounding_dino.modeling.losses import criterion as criterion_module
from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.losses.matcher import HungarianMatcher
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator
from grounding_dino.structures import DecoderOutput, Predictions, Targets

import pytest
import torch

OUR_NAMES = {"loss_cls": "loss_class", "loss_bbox": "loss_l1", "loss_iou": "loss_giou"}


def make_criterion() -> SetCriterion:
    return SetCriterion(matcher=HungarianMatcher(class_weight=2.0, l1_weight=5.0, giou_weight=2.0))


def our_name(name: str) -> str:
    """`d3.dn_loss_cls` of the reference -> `loss_class_denoising_3`."""
    layer, _, rest = name.rpartition(".")
    stage = "_encoder" if rest.startswith("enc_") else "_denoising" if rest.startswith("dn_") else ""
    return OUR_NAMES[rest[rest.index("loss_") :]] + stage + (f"_{layer[1:]}" if layer else "")


def random_output(layers: int, pictures: int, queries: int, classes: int) -> DecoderOutput:
    torch.manual_seed(0)
    stages = [
        Predictions(
            torch.randn(pictures, queries, classes, requires_grad=True),
            torch.rand(pictures, queries, 4, requires_grad=True),
        )
        for _ in range(layers + 1)
    ]
    return DecoderOutput(stages[:-1], stages[-1])


@pytest.mark.parametrize("name", ["case1", "case2", "case3"])
def test_losses_and_gradients_equal_reference(load_loss_case: Callable, name: str) -> None:
    case = load_loss_case(name)
    inputs = {k: case.arrays[k].requires_grad_() for k in ("logits", "boxes", "enc_logits", "enc_boxes")}
    generator = DenoisingGenerator(embed_dim=4, num_labels=80, num_queries=12)
    denoising = generator(case.targets, 20)
    assert denoising.content.shape[1] == case.num_denoising
    assert denoising.num_groups == case.facts["dn_meta"]["num_denoising_groups"]

    losses = make_criterion()(case.output(), case.targets, denoising, case.text_padding_mask)
    expected = {our_name(k): v for k, v in case.facts["losses_float64"].items()}
    assert losses.keys() == expected.keys()
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-5)
    torch.stack(list(losses.values())).sum().backward()
    for key, value in inputs.items():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, case.arrays[f"grad_{key}"], atol=5e-6, rtol=1e-5)


def test_batch_without_objects_leaves_every_parameter_a_gradient() -> None:
    output = random_output(2, 2, 6, 5)
    targets = [Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)) for _ in range(2)]
    generator = DenoisingGenerator(embed_dim=4, num_labels=5)
    losses = make_criterion()(output, targets, generator(targets, 6))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(v.isfinite() for v in losses.values())
    assert losses["loss_l1"] == losses["loss_giou_encoder"] == losses["loss_class_denoising_0"] == 0
    assert losses["loss_class"] > 0
    for stage in [*output.layers, output.encoder]:
        assert stage is not None and stage.pred_boxes.grad is not None and stage.pred_boxes.grad.eq(0).all()
    assert generator.label_embedding.weight.grad is not None
    assert generator.label_embedding.weight.grad.eq(0).all()


def test_names_do_not_depend_on_the_targets() -> None:
    generator = DenoisingGenerator(embed_dim=4, num_labels=5, num_queries=2)
    names = []
    for count in (0, 2):
        targets = [Targets(torch.ones(count, dtype=torch.int64), torch.rand(count, 4))]
        denoising = generator(targets, 6)
        slots = denoising.content.shape[1]
        output = random_output(2, 1, 6 + slots, 5)
        layers = [Predictions(p.pred_logits[:, slots:], p.pred_boxes[:, slots:]) for p in output.layers]
        noised = [Predictions(p.pred_logits[:, :slots], p.pred_boxes[:, :slots]) for p in output.layers]
        names.append(make_criterion()(DecoderOutput(layers, layers[0], noised), targets, denoising).keys())
    assert names[0] == names[1]
    assert not any("denoising" in k for k in make_criterion()(DecoderOutput(layers), targets))


def test_labels_without_a_map_are_classes() -> None:
    output = random_output(1, 1, 6, 5)
    labels, boxes = torch.tensor([1, 3]), torch.rand(2, 4)
    criterion, targets, answer = make_criterion(), [Targets(labels, boxes)], output.layers[0]
    by_label = criterion(output, targets)
    matches = criterion.matcher(answer.pred_logits[None], answer.pred_boxes[None], targets)
    p = answer.pred_logits[0].sigmoid()
    one = torch.zeros(6, 5, dtype=torch.bool)
    one[matches.query[0], labels[matches.target[0]]] = True
    expected = torch.where(one, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()).sum() / 2
    torch.testing.assert_close(by_label["loss_class"], expected)


def test_encoder_may_have_another_number_of_queries() -> None:
    output, other = random_output(2, 1, 6, 5), random_output(2, 1, 9, 5)
    targets = [Targets(torch.tensor([1, 3]), torch.rand(2, 4))]
    losses = make_criterion()(dataclasses.replace(output, encoder=other.encoder), targets)
    expected = make_criterion()(dataclasses.replace(other, layers=[other.encoder]), targets)
    torch.testing.assert_close(losses["loss_giou_encoder"], expected["loss_giou"])
    torch.testing.assert_close(losses["loss_giou_0"], make_criterion()(output, targets)["loss_giou_0"])


def test_normaliser_is_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    output = random_output(1, 1, 6, 5)
    targets = [Targets(torch.tensor([1, 3]), torch.rand(2, 4))]
    alone = make_criterion()(output, targets)
    monkeypatch.setattr(criterion_module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: counts.add_(6))  # the other process has 6
    together = make_criterion()(output, targets)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value * 2 / 4)


def test_half_precision_predictions() -> None:
    output = random_output(1, 1, 6, 5)
    half = DecoderOutput([Predictions(p.pred_logits.bfloat16(), p.pred_boxes.bfloat16()) for p in output.layers])
    targets = [Targets(torch.tensor([1]), torch.rand(1, 4))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = make_criterion()(half, targets)
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())


def test_wrong_inputs_are_named() -> None:
    output = random_output(1, 1, 6, 5)
    targets = [Targets(torch.tensor([1]), torch.rand(1, 4), positive_map=torch.ones(1, 4))]
    with pytest.raises(ValueError, match="picture 0 of the batch has 4 columns, but the class logits have 5"):
        make_criterion()(output, targets)
    targets = [Targets(torch.tensor([1]), torch.rand(1, 4))]
    with pytest.raises(ValueError, match="no predictions for them"):
        make_criterion()(output, targets, DenoisingGenerator(embed_dim=4, num_labels=5)(targets, 6))
