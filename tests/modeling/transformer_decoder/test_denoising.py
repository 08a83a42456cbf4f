import json
from pathlib import Path
from typing import Any

from grounding_dino.layers.box_ops import box_xyxy_to_cxcywh
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator, DenoisingNoise
from grounding_dino.structures import Targets

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "reference" / "mmdet"
FACTS = json.loads((FOLDER / "losses_gdino.json").read_text())


def make_targets(counts: list[int], num_labels: int = 10) -> list[Targets]:
    smallest = torch.tensor([0.3, 0.3, 0.05, 0.05])
    return [Targets(torch.randint(num_labels, (n,)), torch.rand(n, 4) * 0.4 + smallest) for n in counts]


def stored_noise(arrays: dict[str, torch.Tensor], groups: int) -> DenoisingNoise:
    """The reference's flat numbers (group, half, target) in our shape; it drew replacements only where used."""
    uniform = arrays["label_uniform"]
    replacement = torch.zeros(len(uniform), dtype=torch.int64)
    replacement[uniform < 0.25] = arrays["label_replacement"]
    shape = (groups, 2, -1)
    return DenoisingNoise(
        uniform.view(shape),
        replacement.view(shape),
        arrays["sign"].view(*shape, 4),
        arrays["box_uniform"].view(*shape, 4),
    )


@pytest.mark.parametrize("case", FACTS["denoising_cases"], ids=lambda case: case["name"])
def test_queries_equal_reference(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.load(FOLDER / "losses_gdino.npz")
    arrays = {k: torch.from_numpy(stored[f"{case['name']}/{k}"]) for k in (
        "label_uniform", "label_replacement", "sign", "box_uniform", "slot_label", "dn_boxes", "attention_blocked"
    )}  # fmt: skip
    targets = []
    for boxes, labels, (height, width) in zip(case["gt_boxes_xyxy"], case["gt_labels"], case["picture_sizes_hw"]):
        size = torch.tensor([width, height, width, height])
        corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        targets.append(Targets(torch.tensor(labels, dtype=torch.int64), box_xyxy_to_cxcywh(corners) / size))
    generator = DenoisingGenerator(
        embed_dim=8,
        num_labels=case["num_classes"],
        num_queries=case["num_dn_queries"],
        label_noise_ratio=case["label_noise_scale"],
        box_noise_scale=case["box_noise_scale"],
    )
    noise = stored_noise(arrays, case["dn_meta"]["num_denoising_groups"])
    monkeypatch.setattr(generator, "draw_noise", lambda *args: noise)

    batch = generator(targets, case["num_matching_queries"])
    assert batch.num_groups == case["dn_meta"]["num_denoising_groups"]
    rows = torch.cat([torch.zeros(1, 8), generator.label_embedding.weight])  # row 0: unused slot
    assert torch.equal(batch.content, rows[arrays["slot_label"] + 1])
    torch.testing.assert_close(batch.reference_points, arrays["dn_boxes"], atol=1e-6, rtol=0)
    assert torch.equal(batch.attention_mask, ~arrays["attention_blocked"])


@pytest.mark.parametrize("layout", FACTS["denoising_layout"], ids=lambda layout: str(layout["num_targets"]))
def test_layout_equals_reference(layout: dict[str, Any]) -> None:
    generator = DenoisingGenerator(embed_dim=2, num_labels=10, num_queries=layout["num_dn_queries"])
    batch = generator(make_targets(layout["num_targets"]), 900)
    assert batch.num_groups == layout["num_groups"]
    assert batch.max_targets == layout["max_num_target"]
    assert batch.content.shape == (len(layout["num_targets"]), layout["num_denoising_queries"], 2)
    assert list(batch.attention_mask.shape) == layout["mask_shape"]
    assert int((~batch.attention_mask).sum()) == layout["num_blocked_pairs"]


def test_positive_slots_know_their_target() -> None:
    targets = make_targets([3, 0, 2])
    generator = DenoisingGenerator(
        embed_dim=2, num_labels=10, num_queries=6, label_noise_ratio=0.0, box_noise_scale=0.0
    )
    batch = generator(targets, 4)
    index = batch.target_index.view(3, 2, 2, 3)  # picture, group, half, target
    assert index[:, 0].tolist() == [
        [[0, 1, 2], [-1, -1, -1]],
        [[-1, -1, -1], [-1, -1, -1]],
        [[3, 4, -1], [-1, -1, -1]],
    ]
    assert torch.equal(index[:, 0], index[:, 1])
    assert batch.num_positives == int((batch.target_index >= 0).sum()) == 10
    positive = batch.target_index >= 0
    boxes, labels = torch.cat([t.boxes for t in targets]), torch.cat([t.labels for t in targets])
    torch.testing.assert_close(batch.reference_points[positive], boxes[batch.target_index[positive]])
    assert torch.equal(batch.content[positive], generator.label_embedding(labels[batch.target_index[positive]]))


def test_unused_slots_are_empty() -> None:
    batch = DenoisingGenerator(embed_dim=2, num_labels=10, num_queries=4)(make_targets([2, 0]), 4)
    assert batch.content[1].eq(0).all() and batch.reference_points[1].eq(0.5).all()


def test_noise_stays_within_its_bounds() -> None:
    torch.manual_seed(0)
    target = Targets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.2, 0.1]]))
    generator = DenoisingGenerator(embed_dim=2, num_labels=50, num_queries=500, box_noise_scale=0.5)
    batch = generator([target], 1)
    corners = torch.stack([batch.reference_points[0, :, 0] - batch.reference_points[0, :, 2] / 2]).view(-1, 2)
    shift = (corners - 0.4).abs() / 0.1  # of the left side, in half widths
    assert shift[:, 0].max() < 0.5 + 1e-4
    assert shift[:, 1].min() > 0.5 - 1e-4 and shift[:, 1].max() < 1 + 1e-4
    kept = (batch.content[0] == generator.label_embedding.weight[0]).all(-1).float().mean()
    assert kept.item() == pytest.approx(0.75 + 0.25 / 50, abs=0.05)


def test_max_queries_bounds_groups_and_targets() -> None:
    generator = DenoisingGenerator(embed_dim=2, num_labels=10, num_queries=100, max_queries=40)
    batch = generator(make_targets([8, 1]), 5)
    assert batch.num_groups == 2 and batch.content.shape[1] == 32

    batch = generator(make_targets([3, 50]), 5)
    assert batch.num_groups == 1 and batch.max_targets == 20 and batch.content.shape[1] == 40
    kept = batch.target_index[1][batch.target_index[1] >= 0]
    assert len(kept.unique()) == 20 and kept.min() >= 3 and kept.max() < 53
    assert batch.num_positives == 23
    others = generator(make_targets([3, 50]), 5).target_index[1]
    assert set(kept.tolist()) != set(others[others >= 0].tolist())


def test_no_targets_keep_the_embedding_in_the_graph() -> None:
    generator = DenoisingGenerator(embed_dim=2, num_labels=10)
    batch = generator(make_targets([0, 0]), 5)
    assert batch.content.shape == (2, 0, 2) and batch.reference_points.shape == (2, 0, 4)
    assert batch.attention_mask.shape == (5, 5) and batch.attention_mask.all()
    torch.cat([batch.content, torch.zeros(2, 5, 2)], dim=1).sum().backward()
    assert generator.label_embedding.weight.grad is not None and generator.label_embedding.weight.grad.eq(0).all()


def test_embedding_gets_gradient() -> None:
    generator = DenoisingGenerator(embed_dim=2, num_labels=10)
    generator(make_targets([2]), 5).content.sum().backward()
    assert generator.label_embedding.weight.grad is not None and generator.label_embedding.weight.grad.ne(0).any()


def test_same_seed_same_queries() -> None:
    generator, targets = DenoisingGenerator(embed_dim=2, num_labels=10), make_targets([3, 2])
    torch.manual_seed(1)
    first = generator(targets, 5)
    torch.manual_seed(1)
    assert torch.equal(first.reference_points, generator(targets, 5).reference_points)


def test_label_without_row_is_refused() -> None:
    targets = [Targets(torch.tensor([2, 7]), torch.rand(2, 4))]
    with pytest.raises(ValueError, match="run from 2 to 7, but .* rows 0 to 4; raise MODEL.DENOISING.NUM_LABELS"):
        DenoisingGenerator(embed_dim=2, num_labels=5)(targets, 3)
    with pytest.raises(ValueError, match="MAX_QUERIES"):
        DenoisingGenerator(embed_dim=2, num_labels=5, max_queries=1)
