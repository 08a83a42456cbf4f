"""The layout of denoising queries against the authors' of DINO and Mask DINO (`dn_structure.json`)."""

import hashlib
import json
from pathlib import Path
from typing import Any

from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator
from grounding_dino.structures import Targets

import numpy as np
import pytest
import torch

REFERENCE = Path(__file__).parents[2] / "reference"
BELOW_WHICH_A_NUMBER_MEANS_GROUPS = 50  # of DINO's dn_number, which counts one half


def targets(counts: list[int]) -> list[Targets]:
    return [Targets(torch.zeros(n, dtype=torch.int64), torch.full((n, 4), 0.5)) for n in counts]


def dino(case: dict[str, Any]) -> DenoisingGenerator:
    number = case["dn_number"]
    fixed = 2 * number if number < BELOW_WHICH_A_NUMBER_MEANS_GROUPS else 0
    return DenoisingGenerator(embed_dim=4, num_labels=2, num_queries=number, num_groups=fixed)


def mask_dino(case: dict[str, Any]) -> DenoisingGenerator:
    return DenoisingGenerator(
        embed_dim=4,
        num_labels=2,
        num_queries=case["dn_num"],
        min_groups=0,
        contrastive=False,
        box_noise="centre_and_size",
    )


CASES = [
    (model, case)
    for model, make in (("dino", dino), ("mask_dino", mask_dino))
    for case in json.loads((REFERENCE / model / "dn_structure.json").read_text())
]


@pytest.mark.parametrize(("model", "case"), CASES, ids=lambda x: x if isinstance(x, str) else str(x["gt_counts"]))
def test_layout(model: str, case: dict[str, Any]) -> None:
    generator = {"dino": dino, "mask_dino": mask_dino}[model](case)
    batch = generator(targets(case["gt_counts"]), case["num_queries"])
    assert batch.content.shape[1] == case["pad_size"]
    assert len(batch.attention_mask) == case["total_queries"]
    blocked = ~batch.attention_mask
    assert int(blocked.sum()) == case.get("attn_mask_true", 0)
    if case.get("attn_mask_sha256"):
        assert hashlib.sha256(np.packbits(blocked.numpy()).tobytes()).hexdigest() == case["attn_mask_sha256"]
    used = (batch.content.abs().sum(-1) > 0).sum(1).tolist()
    assert used == case.get("used_slots_per_image", case.get("nonzero_query_slots_per_image", [0] * len(used)))
    if case["pad_size"]:
        assert batch.num_groups == case["groups"]
    if case.get("slots_position"):
        picture, slot = (batch.target_index >= 0).nonzero(as_tuple=True)
        theirs = sorted(zip(case["slots_image_index"], case["slots_position"]))
        assert list(zip(picture.tolist(), slot.tolist())) == theirs
