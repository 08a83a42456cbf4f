"""The stored training losses of mmdet 3.3.0 (losses_gdino in tests/reference/mmdet/README.md)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding_dino.layers.box_ops import box_xyxy_to_cxcywh
from grounding_dino.structures import DecoderOutput, Predictions, Targets

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "reference" / "mmdet"


@dataclass
class LossCase:
    """One stored case: its arrays by name, its facts, and its inputs in our structures."""

    arrays: dict[str, Tensor]
    facts: dict[str, Any]
    targets: list[Targets]
    text_padding_mask: Tensor

    @property
    def num_denoising(self) -> int:
        return int(self.facts["dn_meta"]["num_denoising_queries"])

    def output(self) -> DecoderOutput:
        layers, denoising = [], []
        for logits, boxes in zip(self.arrays["logits"], self.arrays["boxes"]):
            denoising.append(Predictions(logits[:, : self.num_denoising], boxes[:, : self.num_denoising]))
            layers.append(Predictions(logits[:, self.num_denoising :], boxes[:, self.num_denoising :]))
        return DecoderOutput(layers, Predictions(self.arrays["enc_logits"], self.arrays["enc_boxes"]), denoising)


@pytest.fixture(scope="session")
def load_loss_case() -> Callable[[str], LossCase]:
    stored = np.load(FOLDER / "losses_gdino.npz")
    facts = json.loads((FOLDER / "losses_gdino.json").read_text())["cases"]

    def load(name: str) -> LossCase:
        arrays = {k.split("/")[1]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith(name + "/")}
        targets = []
        for index, (height, width) in enumerate(facts[name]["picture_sizes_hw"]):
            size = torch.tensor([width, height, width, height])
            boxes = box_xyxy_to_cxcywh(arrays[f"gt_boxes_xyxy{index}"]) / size
            labels, positive_map = arrays[f"gt_labels{index}"], arrays[f"positive_map{index}"]
            targets.append(Targets(labels, boxes, positive_map=positive_map))
        return LossCase(arrays, facts[name], targets, ~arrays["text_token_mask"])

    return load
