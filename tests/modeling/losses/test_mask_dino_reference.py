"""The same matcher and losses on Mask DINO's numbers (tests/reference/mask_dino/README.md, `units`)."""

import json
from pathlib import Path

from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.losses.mask_losses import MaskCosts, MaskLosses
from grounding_dino.modeling.losses.matcher import HungarianMatcher
from grounding_dino.structures import DecoderOutput, Predictions, Targets

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "reference" / "mask_dino"
MODES = ["instance", "panoptic", "panoptic_pano_box_loss", "semantic_ce", "empty_image"]
TERMS = {"class": "ce", "mask": "mask", "dice": "dice", "l1": "bbox", "giou": "giou"}
THINGS = 80


def grid_points(side: int = 16) -> Tensor:
    """(1, P, 2): the middles of a regular grid, row by row."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((torch.stack((x, y), -1).reshape(1, -1, 2) + 0.5) / side).float()


class AtGrid(MaskCosts):
    def draw_points(self, device: torch.device) -> Tensor:
        return grid_points()


class LossesAtGrid(MaskLosses):
    def draw_points(self, logits: Tensor) -> Tensor:
        return grid_points().expand(len(logits), -1, -1)


@pytest.fixture(scope="module")
def units() -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(FOLDER / "units.npz").items()}


def case(units: dict[str, Tensor], mode: str) -> tuple[Predictions, list[Targets]]:
    targets = []
    for b in range(2):
        labels = units[f"{mode}/t{b}_labels"].long()
        bits = np.unpackbits(units[f"{mode}/t{b}_masks_packed"].numpy(), axis=-1)[:, : 96 * 128]
        masks = torch.from_numpy(bits.astype(bool)).view(len(labels), 96, 128)
        things = labels < THINGS if mode == "panoptic_pano_box_loss" else None
        targets.append(Targets(labels, units[f"{mode}/t{b}_boxes"], masks, is_thing=things))
    return Predictions(*(units[f"{mode}/pred_{part}"] for part in ("logits", "boxes", "masks"))), targets


def matcher(**weights: float) -> HungarianMatcher:
    given = {"class": 0.0, "l1": 0.0, "giou": 0.0, "mask": 0.0, "dice": 0.0, **weights}
    costs = AtGrid(given["mask"], given["dice"], 256)
    return HungarianMatcher(
        class_weight=given["class"], l1_weight=given["l1"], giou_weight=given["giou"], mask_costs=costs
    )


WEIGHTS = {"class": 4.0, "mask": 5.0, "dice": 5.0, "l1": 5.0, "giou": 2.0}


@pytest.mark.parametrize("mode", MODES)
def test_costs_and_matches(units: dict[str, Tensor], mode: str) -> None:
    predictions, targets = case(units, mode)
    inputs = (predictions.pred_logits[None], predictions.pred_boxes[None], targets, None, [predictions.pred_masks])
    of_parts = {"cost": matcher(**WEIGHTS).costs(*inputs)}
    names = {"class": "class", "mask": "mask", "dice": "dice", "l1": "box", "giou": "giou"}
    of_parts |= {theirs: matcher(**{ours: 1.0}).costs(*inputs) for ours, theirs in names.items()}
    for name, costs in of_parts.items():
        for b, target in enumerate(targets):
            expected = units[f"{mode}/cost{b}" + ("" if name == "cost" else f"_{name}")]
            torch.testing.assert_close(costs[0, b, :, : len(target)], expected, atol=5e-5, rtol=1e-4)
    found = matcher(**WEIGHTS)(*inputs)
    for b in range(2):
        query, target = units[f"{mode}/match{b}"].long()
        mine = found.picture == b
        assert torch.equal(found.query[0, mine], query)
        assert torch.equal(found.target[0, mine] - len(targets[0]) * b, target)


@pytest.mark.parametrize("mode", MODES)
def test_losses(units: dict[str, Tensor], mode: str) -> None:
    predictions, targets = case(units, mode)
    criterion = SetCriterion(
        matcher=matcher(**WEIGHTS),
        l1_weight=1.0,
        giou_weight=1.0,
        class_loss="cross_entropy" if mode == "semantic_ce" else "focal",
        mask_losses=LossesAtGrid(1.0, 1.0, 256, 3.0, 0.75),
    )
    losses = criterion(DecoderOutput([predictions]), targets)
    expected = json.loads((FOLDER / "units.json").read_text())[mode]["losses_unweighted_float32"]
    for ours, theirs in TERMS.items():
        assert losses[f"loss_{ours}"].item() == pytest.approx(expected[f"loss_{theirs}"], rel=1e-4), ours
    assert len(losses) == len(expected) == 5
