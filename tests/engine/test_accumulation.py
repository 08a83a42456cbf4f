"""Several backward passes a step: the gradients of one large batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.engine.train_step import unsynchronised
from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

ConfigBuilder = Callable[..., CfgNode]

# One picture size, so that padding is the same, and nothing that is drawn at random.
EXACT = (
    *(
        "INPUT.MIN_SIZE_TRAIN",
        (96,),
        "INPUT.MAX_SIZE_TRAIN",
        128,
        "MODEL.TEXT_ENCODER.DROPOUT",
        0.0,
        "MODEL.SWIN.DROP_PATH_RATE",
        0.0,
    ),
    *("MODEL.DENOISING.LABEL_NOISE_RATIO", 0.0, "MODEL.DENOISING.BOX_NOISE_SCALE", 0.0),
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 1.0, "SOLVER.WARMUP_ITERS", 0),
    *("SOLVER.PARAMETER_GROUPS", [], "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", False, "SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 4),
)


def one_step(cfg: CfgNode) -> tuple[dict[str, Tensor], dict[str, float]]:
    """How far plain SGD with rate 1 moves each weight, which is the gradient, and the losses recorded."""
    trainer = Trainer(cfg)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name}
    return moved, losses


@pytest.mark.parametrize("denoising", [False, True])
def test_gradients_and_losses_are_those_of_the_whole_batch(
    train_cfg: ConfigBuilder, coco_folder: Path, denoising: bool
) -> None:
    if denoising:  # which has as many groups and slots in each part only where all pictures have as many objects
        content = json.loads((coco_folder / "boxes.json").read_text())
        content["annotations"] = list({row["image_id"]: row for row in content["annotations"]}.values())
        (coco_folder / "boxes.json").write_text(json.dumps(content))
    opts = (*EXACT, "MODEL.DENOISING.ENABLED_ON", denoising)
    whole, losses = one_step(train_cfg(*opts))
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    assert scale > 0
    for passes in (2, 4):
        parts, same_losses = one_step(train_cfg(*opts, "SOLVER.ACCUMULATION_STEPS", passes))
        assert same_losses == pytest.approx(losses, rel=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=2e-5 * scale, rtol=1e-4, msg=name)


def test_parts_count_by_their_targets(train_cfg: ConfigBuilder) -> None:
    # parts of one and of two squares: a mean of the parts' losses would weigh the lonely square as much as two
    trainer = Trainer(train_cfg(*EXACT, "SOLVER.ACCUMULATION_STEPS", 4))
    batch = next(iter(trainer.data_loader))
    counts = [len(inputs["instances"]) for inputs in batch]
    assert sorted(set(counts)) == [1, 2]
    seen: list[list[int]] = []

    def model(part: list[dict[str, Any]]) -> dict[str, Tensor]:
        seen.append([len(inputs["instances"]) for inputs in part])
        return {"loss": torch.ones((), requires_grad=True)}  # the criterion's mean over the part's targets

    losses = trainer._trainer
    object.__setattr__(losses, "model", model)
    assert float(losses._backward(batch)["loss"]) == pytest.approx(1.0), "shares add up to the whole"
    assert seen == [[count] for count in counts]


@pytest.mark.parametrize("passes", [0, 3])
def test_passes_that_do_not_divide_the_batch_are_refused(train_cfg: ConfigBuilder, passes: int) -> None:
    message = rf"ACCUMULATION_STEPS is {passes}, but a process has 4 pictures a step"
    with pytest.raises(ValueError, match=message):
        Trainer(train_cfg("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", passes))


class Sharded(nn.Module):
    """Notes what it is told, as torch's fully_shard modules are told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bool] = []

    def set_requires_gradient_sync(self, value: bool) -> None:
        self.told.append(value)


def test_sharded_models_keep_their_gradients_until_the_last_pass() -> None:
    model = Sharded()
    with pytest.raises(KeyError), unsynchronised(model):
        assert model.told == [False]
        raise KeyError
    assert model.told == [False, True]
    with unsynchronised(nn.Linear(1, 1)):
        pass
