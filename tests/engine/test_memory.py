"""The memory of a training step: counted exactly, and scaled from small pictures to large ones."""

from __future__ import annotations

from typing import Any

from grounding_dino.engine.memory import (
    LiveBytes,
    crowded,
    estimate_memory,
    format_bytes,
    largest_picture,
    measure_memory,
)

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances


@pytest.fixture
def sample() -> dict[str, Any]:
    instances = Instances((64, 80))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 32], [10.0, 4, 20, 60]]))
    instances.gt_classes = torch.tensor([1, 0])
    image = torch.randint(256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "instances": instances, "categories": ["cat", "dog"]}


def test_bytes_are_counted_as_they_come_and_go() -> None:
    given = torch.zeros(1000)
    with LiveBytes([given]) as counter:
        kept = given + 1  # 4000 bytes
        view = kept[:10].view(2, 5)
        assert counter.live == 4000
        passing = kept * 2
        assert (counter.live, counter.peak) == (8000, 8000)
        del passing
        assert (counter.live, counter.peak) == (4000, 8000)
        given.add_(1)
        del kept
        assert counter.live == 4000, "a view keeps its memory"
        del view
        assert counter.live == 0


def test_what_a_backward_pass_needs_is_live_until_then() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveBytes([weight]) as counter:
        loss = (weight.exp() * 2).exp().sum()
        assert counter.live == 2 * 40000 + 4, "exp keeps what it gave"
        loss.backward()
        del loss
        assert counter.live == 40000, "the gradient"


@pytest.mark.slow
def test_small_steps_foretell_a_large_one(tiny_cfg: CfgNode, sample: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    size = (416, 520)
    guess = estimate_memory(tiny_cfg, sample, size, pictures=1, objects=3)
    true = measure_memory(tiny_cfg, sample, size, pictures=1, objects=3)
    assert "scaled from one picture of 320 x 256 and one of 480 x 384" in guess.how and guess.peak is None
    assert guess.activations == pytest.approx(true.activations, rel=0.02)
    assert true.peak is not None and "one step was run" in true.how
    assert 0.8 * true.total < true.peak <= true.total, "activations go while gradients come"
    assert (guess.weights, guess.gradients, guess.optimizer) == (true.weights, true.gradients, true.optimizer)


def test_small_pictures_are_not_scaled(tiny_cfg: CfgNode, sample: dict[str, Any]) -> None:
    guess = estimate_memory(tiny_cfg, sample, (96, 120), pictures=2, objects=3)
    true = measure_memory(tiny_cfg, sample, (96, 120), pictures=2, objects=3)
    assert "one picture measured at full size, times 2" in guess.how
    assert guess.activations == pytest.approx(true.activations, rel=0.05)


def test_gradients_states_and_averages_are_of_what_is_trained(tiny_cfg: CfgNode, sample: dict[str, Any]) -> None:
    def found(*opts: Any) -> Any:
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(opts))
        return estimate_memory(cfg, sample, (96, 120), pictures=1, objects=2)

    plain = found()
    assert plain.optimizer == 2 * plain.gradients and plain.average == 0
    assert found("SOLVER.OPTIMIZER", "SGD").optimizer == plain.gradients
    assert found("SOLVER.EMA.ENABLED_ON", True).average == plain.gradients
    frozen = found("SOLVER.FREEZE", ["^backbone\\."])
    assert frozen.weights == plain.weights
    assert frozen.gradients < plain.gradients and frozen.activations < plain.activations


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ((), (300, 600)),
        (("INPUT.MAX_SIZE_TRAIN", 450), (225, 450)),
        (("INPUT.CROP.ENABLED", True), (300, 1000)),
        (("INPUT.LARGE_SCALE_JITTER.ENABLED_ON", True, "INPUT.LARGE_SCALE_JITTER.SIZE", 512), (512, 512)),
    ],
)
def test_the_largest_picture(tiny_cfg: CfgNode, opts: tuple[Any, ...], expected: tuple[int, int]) -> None:
    tiny_cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (200, 300), "INPUT.MAX_SIZE_TRAIN", 1000, *opts])
    assert largest_picture(tiny_cfg, [(50, 100), (100, 100), (90, 90)]) == expected


def test_a_crowded_sample(sample: dict[str, Any]) -> None:
    crowd = crowded(sample, (128, 240), 5)
    assert crowd["image"].shape == (3, 128, 240) and crowd["image"].dtype == torch.uint8
    assert crowd["instances"].gt_classes.tolist() == [1, 0, 1, 0, 1]
    assert crowd["instances"].gt_boxes.tensor[2].tolist() == [24, 16, 120, 64]
    assert len(crowded(sample, (64, 80), 1)["instances"]) == 1
    assert len(sample["instances"]) == 2


@pytest.mark.parametrize(("count", "text"), [(2**20, "1.0 MiB"), (3 * 2**29, "1.50 GiB"), (0, "0.0 MiB")])
def test_bytes_in_words(count: int, text: str) -> None:
    assert format_bytes(count) == text
