"""Semantic results averaged over sizes and mirror images."""

from __future__ import annotations

from typing import Any

from grounding_dino.modeling.test_time_augmentation import SemanticSegmentorWithTTA

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import nn


class Brightness(nn.Module):
    """Scores of two classes that are the picture's red and green, in the size asked for; notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        assert len(batch) == 1
        image = batch[0]["image"].float()
        self.seen.append(tuple(image.shape))
        size = (batch[0]["height"], batch[0]["width"])
        return [{"sem_seg": F.interpolate(image[None, :2], size=size, mode="nearest")[0], "instances": None}]


def test_the_mean_over_sizes_and_mirror_images_lies_as_the_picture(tiny_cfg: CfgNode) -> None:
    tiny_cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (8, 16), "TEST.AUG.MAX_SIZE", 24])
    model = Brightness()
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    image[0, :, :8] = 200  # the left half red, the right half green
    image[1, :, 8:] = 100
    augmented = SemanticSegmentorWithTTA(tiny_cfg, model)
    found = augmented([{"image": image, "height": 4, "width": 8}, {"image": image}])
    assert model.seen == 2 * [(3, 8, 16), (3, 8, 16), (3, 12, 24), (3, 12, 24)]
    assert set(found[0]) == {"sem_seg"} and found[0]["sem_seg"].shape == (2, 4, 8)
    assert found[1]["sem_seg"].shape == (2, 8, 16)
    assert (found[0]["sem_seg"][0, :, :3] == 200).all() and (found[0]["sem_seg"][1, :, 5:] == 100).all()
    assert (found[0]["sem_seg"][1, :, :3] == 0).all()


class Position(nn.Module):
    """A score that grows from left to right, whatever the picture shows, and one that is the size it saw."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        height, width = batch[0]["height"], batch[0]["width"]
        across = torch.arange(width).expand(height, width)
        return [{"sem_seg": torch.stack([across, torch.full_like(across, batch[0]["image"].shape[1])]).float()}]


@pytest.mark.parametrize("flip", [True, False])
def test_every_size_and_mirror_image_has_the_same_weight(flip: bool) -> None:
    augmented = SemanticSegmentorWithTTA(Position(), min_sizes=[10, 20, 60], max_size=1000, flip=flip)
    scores = augmented([{"image": torch.zeros(3, 20, 40, dtype=torch.uint8)}])[0]["sem_seg"]
    expected = torch.full((40,), 19.5) if flip else torch.arange(40.0)
    torch.testing.assert_close(scores[0], expected.expand(20, 40))
    torch.testing.assert_close(scores[1], torch.full((20, 40), 30.0))


def test_sizes_that_cannot_be_are_an_error(tiny_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"TEST.AUG.MIN_SIZES is \(\)"):
        SemanticSegmentorWithTTA(Position(), min_sizes=[], max_size=100)
