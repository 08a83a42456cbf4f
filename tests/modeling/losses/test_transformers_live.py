"""Losses and pairs against the live `loss_grounding_dino` of transformers, where it is plain who belongs to whom.

Its class cost looks at a target's own tokens only; ours is mmdet's, which counts the whole row, so where matching is a
close call the two may decide differently. The matching of close calls is held against mmdet's numbers
(test_criterion.py).
"""

from __future__ import annotations

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.losses.matcher import HungarianMatcher
from grounding_dino.structures import DecoderOutput, Predictions, Targets

import pytest
import torch
from torch import Tensor
from transformers import GroundingDinoConfig
from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss, GroundingDinoHungarianMatcher

LAYERS, QUERIES, TOKENS = 3, 9, 8
COUNTS = (2, 4)
# Names of one to three tokens; the second picture's prompt is shorter, so its last columns are padding.
LABEL_MAPS = (
    torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]]),
    torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0.0]]),
)
TEXT = torch.tensor([[True] * 8, [True] * 6 + [False] * 2])


def case(seed: int) -> tuple[list[Predictions], list[Targets]]:
    """Predictions of all layers and the encoder, each of which has every target once, at another query, and noise."""
    random = torch.Generator().manual_seed(seed)
    targets = []
    for count, label_map in zip(COUNTS, LABEL_MAPS):
        boxes = torch.rand(count, 4, generator=random) * 0.3 + torch.tensor([0.35, 0.35, 0.1, 0.1])
        labels = torch.randint(len(label_map), (count,), generator=random)
        targets.append(Targets(labels, boxes, positive_map=label_map[labels]))
    stages = []
    for _ in range(LAYERS + 1):
        logits = torch.randn(2, QUERIES, TOKENS, generator=random) - 1
        boxes = torch.rand(2, QUERIES, 4, generator=random) * 0.02 + torch.tensor([0.9, 0.9, 0.02, 0.02])
        for picture, target in enumerate(targets):
            chosen = torch.randperm(QUERIES, generator=random)[: len(target)]
            boxes[picture, chosen] = target.boxes + 0.01 * torch.rand(len(target), 4, generator=random)
        logits = logits.masked_fill(~TEXT[:, None], -torch.inf)
        stages.append(Predictions(logits.requires_grad_(), boxes.requires_grad_()))
    return stages, targets


def their_losses(stages: list[Predictions], targets: list[Targets]) -> dict[str, Tensor]:
    config = GroundingDinoConfig(auxiliary_loss=True, two_stage=True, decoder_layers=LAYERS)
    *layers, encoder = stages
    _, losses, _ = GroundingDinoForObjectDetectionLoss(
        logits=layers[-1].pred_logits,
        labels=[{"class_labels": target.labels, "boxes": target.boxes} for target in targets],
        device="cpu",
        pred_boxes=layers[-1].pred_boxes,
        config=config,
        label_maps=LABEL_MAPS,
        text_mask=TEXT[:, None].expand(-1, QUERIES, -1),
        outputs_class=torch.stack([layer.pred_logits for layer in layers]),
        outputs_coord=torch.stack([layer.pred_boxes for layer in layers]),
        encoder_logits=encoder.pred_logits,
        encoder_pred_boxes=encoder.pred_boxes,
    )
    weights = {"loss_ce": ("loss_class", 1.0), "loss_bbox": ("loss_l1", 5.0), "loss_giou": ("loss_giou", 2.0)}
    ours = {}
    for name, value in losses.items():
        kind = next((kind for kind in weights if name.startswith(kind)), None)
        if kind is not None:
            ours[weights[kind][0] + name.removeprefix(kind).replace("_enc", "_encoder")] = weights[kind][1] * value
    return ours


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_losses_and_gradients_equal_those_of_transformers(seed: int) -> None:
    results = []
    for kind in ("ours", "theirs"):
        stages, targets = case(seed)
        if kind == "ours":
            matcher = HungarianMatcher(class_weight=1.0, l1_weight=5.0, giou_weight=2.0)
            output = DecoderOutput(stages[:-1], stages[-1])
            losses = SetCriterion(matcher=matcher)(output, targets, None, ~TEXT)
        else:
            losses = their_losses(stages, targets)
        torch.stack(list(losses.values())).sum().backward()
        leaves = [leaf.grad for stage in stages for leaf in (stage.pred_logits, stage.pred_boxes)]
        results.append(({name: float(value.detach()) for name, value in losses.items()}, leaves))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert len(theirs) == 3 * (LAYERS + 1)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for found, expected in zip(our_gradients, their_gradients, strict=True):
        assert found is not None and expected is not None
        torch.testing.assert_close(found, expected.nan_to_num(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_equal_those_of_transformers(seed: int) -> None:
    stages, targets = case(seed)
    logits = torch.stack([stage.pred_logits for stage in stages])
    boxes = torch.stack([stage.pred_boxes for stage in stages])
    found = HungarianMatcher(class_weight=1.0, l1_weight=5.0, giou_weight=2.0)(logits, boxes, targets, TEXT)
    for stage in range(len(stages)):
        outputs = {"logits": logits[stage], "pred_boxes": boxes[stage], "label_maps": LABEL_MAPS}
        labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
        theirs = GroundingDinoHungarianMatcher(class_cost=1.0, bbox_cost=5.0, giou_cost=2.0)(outputs, labels)
        first = 0
        for picture, (queries, columns) in enumerate(theirs):
            mine = found.picture == picture
            assert torch.equal(found.query[stage, mine], queries)
            assert torch.equal(found.target[stage, mine] - first, columns)
            first += COUNTS[picture]
