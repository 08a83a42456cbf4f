"""The same matcher, losses and denoising on the authors' closed-set DINO numbers (tests/reference/dino/README.md)."""

import json
from pathlib import Path

from grounding_dino.layers.box_ops import inverse_sigmoid
from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.losses.matcher import HungarianMatcher
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator, DenoisingNoise
from grounding_dino.structures import DecoderOutput, Predictions, Targets

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "reference" / "dino"


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    stored = np.load(FOLDER / "train_r50_4scale.npz")
    names = [k for k in stored.files if k.startswith(("gt", "unit_", "dn_stored_"))]
    return {k: torch.from_numpy(stored[k]) for k in names}


@pytest.fixture(scope="module")
def targets(arrays: dict[str, Tensor]) -> list[Targets]:
    return [Targets(arrays[f"gt{b}_labels"], arrays[f"gt{b}_boxes_cxcywh"]) for b in range(2)]


def test_costs_matches_and_losses(arrays: dict[str, Tensor], targets: list[Targets]) -> None:
    logits, boxes = arrays["unit_pred_logits"], arrays["unit_pred_boxes"]
    matcher = HungarianMatcher(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)
    costs, matches = matcher.costs(logits[None], boxes[None], targets), matcher(logits[None], boxes[None], targets)
    for index, first in ((0, 0), (1, 3)):
        torch.testing.assert_close(
            costs[0, index, :, : len(targets[index])], arrays[f"unit_cost{index}"], atol=1e-4, rtol=1e-5
        )
        mine = matches.picture == index
        query, target = arrays[f"unit_match{index}"].long()
        assert torch.equal(matches.query[0, mine], query) and torch.equal(matches.target[0, mine] - first, target)

    criterion = SetCriterion(matcher=matcher, class_weight=1.0, l1_weight=1.0, giou_weight=1.0)
    losses = criterion(DecoderOutput([Predictions(logits, boxes)]), targets)
    expected = json.loads((FOLDER / "train_r50_4scale.json").read_text())["unit_losses_unweighted"]
    for ours, theirs in (("loss_class", "loss_ce"), ("loss_l1", "loss_bbox"), ("loss_giou", "loss_giou")):
        assert losses[ours].item() == pytest.approx(expected[theirs], rel=1e-5)


def test_denoising_boxes(arrays: dict[str, Tensor], targets: list[Targets], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = DenoisingGenerator(embed_dim=4, num_labels=92, num_queries=100, box_noise_scale=0.4)
    flipped = arrays["dn_stored_label_p"] < 0.25
    labels = torch.zeros(350, dtype=torch.int64)
    labels[flipped] = arrays["dn_stored_new_labels"]
    # The stored numbers are as they were added: with their signs, and the 1 of the negative half on top.
    uniform = arrays["dn_stored_box_rand"].abs().view(25, 2, 7, 4) - torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    noise = DenoisingNoise(
        label_uniform=arrays["dn_stored_label_p"].view(25, 2, 7),
        label_replacement=labels.view(25, 2, 7),
        box_sign=arrays["dn_stored_box_sign01"].view(25, 2, 7, 4) * 2.0 - 1.0,
        box_uniform=uniform,
    )
    monkeypatch.setattr(generator, "draw_noise", lambda *args: noise)
    batch = generator(targets, 900)
    logits = inverse_sigmoid(batch.reference_points, eps=1e-3)
    torch.testing.assert_close(logits, arrays["dn_stored_query_bbox_unsigmoid"], atol=2e-5, rtol=0)
