"""What crosses between host and device in the losses: on a GPU the host would wait for each of these.

There is no GPU here. The meta device has no values, so what runs on it reads none back; what is sent to the device is
counted where the device is the CPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.modeling.losses import matcher as matcher_module
from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.losses.mask_losses import MaskCosts, MaskLosses
from grounding_dino.modeling.losses.matcher import HungarianMatcher, Matches
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator
from grounding_dino.structures import DecoderOutput, Predictions, Targets

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

COUNTS, QUERIES, TOKENS, LAYERS = (2, 3), 7, 6, 3


class Crossings(TorchFunctionMode):
    """Counts calls by name that copy values between host and device, or whose shape depends on values."""

    NAMES = {
        *("item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "tensor", "new_tensor", "as_tensor", "unique"),
        *("__bool__", "__int__", "__float__", "__index__"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class KnownPairs(HungarianMatcher):
    """Pairs without looking at costs, which it computes."""

    def forward(self, pred_logits: Tensor, pred_boxes: Tensor, targets: Any, valid: Any = None, pred_masks: Any = None):
        self.costs(pred_logits, pred_boxes, targets, valid, pred_masks)
        rows = [
            torch.zeros(*shape, sum(COUNTS), dtype=torch.int64, device=pred_logits.device)
            for shape in ((), (len(pred_logits),), (len(pred_logits),))
        ]
        return Matches(*rows)


def criterion(kind: type[HungarianMatcher] = HungarianMatcher) -> SetCriterion:
    matcher = kind(class_weight=2.0, l1_weight=5.0, giou_weight=2.0, mask_costs=MaskCosts(5.0, 5.0, 8))
    return SetCriterion(matcher=matcher, mask_losses=MaskLosses(5.0, 5.0, 8, 3.0, 0.75))


def targets_on(device: str) -> list[Targets]:
    random = torch.Generator().manual_seed(0)
    targets = []
    for count in COUNTS:
        parts = {
            "labels": torch.randint(4, (count,), generator=random),
            "boxes": torch.rand(count, 4, generator=random) * 0.3 + 0.3,
            "masks": torch.rand(count, 16, 16, generator=random) > 0.5,
            "positive_map": (torch.rand(count, TOKENS, generator=random) > 0.5).float(),
        }
        targets.append(Targets(**{name: part.to(device) for name, part in parts.items()}))
    return targets


def stages_on(device: str, queries: int = QUERIES) -> list[Predictions]:
    random = torch.Generator().manual_seed(1)
    stages = []
    for _ in range(LAYERS):
        logits = torch.randn(2, queries, TOKENS, generator=random).to(device).requires_grad_()
        boxes = (torch.rand(2, queries, 4, generator=random) * 0.3 + 0.3).to(device).requires_grad_()
        masks = torch.randn(2, queries, 4, 4, generator=random).to(device).requires_grad_()
        stages.append(Predictions(logits, boxes, masks))
    return stages


def test_losses_of_all_layers_and_pictures_take_one_copy_of_costs_to_the_host() -> None:
    torch.manual_seed(0)
    targets, generator = targets_on("cpu"), DenoisingGenerator(embed_dim=4, num_labels=4, num_queries=6)
    noised = generator(targets, QUERIES)
    *layers, encoder = stages_on("cpu")
    denoised = stages_on("cpu", noised.content.shape[1])[:-1]
    with Crossings() as crossings:
        losses = criterion()(DecoderOutput(layers, encoder, denoised), targets, noised)
        torch.stack(list(losses.values())).sum().backward()
    assert crossings.found == {"cpu": 1, "numpy": 1}


def test_nothing_but_the_costs_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which the meta device has not
    targets = targets_on("meta")
    generator = DenoisingGenerator(embed_dim=4, num_labels=4, num_queries=6).to("meta")
    noised = generator(targets, QUERIES)
    assert noised.content.is_meta and noised.positives.shape == (3, noised.num_positives)
    *layers, encoder = stages_on("meta")
    denoised = stages_on("meta", noised.content.shape[1])[:-1]
    losses = criterion(KnownPairs)(DecoderOutput(layers, encoder, denoised), targets, noised)
    torch.stack(list(losses.values())).sum().backward()
    assert all(stage.pred_logits.grad is not None for stage in (*layers, encoder, *denoised))


def test_assignments_in_threads_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.stack([stage.pred_logits for stage in stages_on("cpu")])
    boxes = torch.stack([stage.pred_boxes for stage in stages_on("cpu")])
    matcher = HungarianMatcher(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)
    alone = matcher(logits, boxes, targets_on("cpu"))
    monkeypatch.setattr(matcher_module, "_MIN_FOR_THREADS", 0)
    monkeypatch.setattr(matcher_module, "_MAX_THREADS", 3)
    monkeypatch.setattr(matcher_module.os, "cpu_count", lambda: 3)
    together = matcher(logits, boxes, targets_on("cpu"))
    for name in ("picture", "query", "target"):
        assert torch.equal(getattr(alone, name), getattr(together, name))


def test_positives_are_the_slots_that_have_a_target() -> None:
    generator = DenoisingGenerator(embed_dim=2, num_labels=10, num_queries=6, max_queries=12)
    targets = [Targets(torch.zeros(n, dtype=torch.int64), torch.rand(n, 4) * 0.2 + 0.4) for n in (1, 0, 9, 3)]
    noised = generator(targets, 4)
    picture, slot = (noised.target_index >= 0).nonzero(as_tuple=True)
    expected = torch.stack((picture, slot, noised.target_index[picture, slot]))
    assert torch.equal(noised.positives, expected) and expected.shape[1] == noised.num_positives > 0
