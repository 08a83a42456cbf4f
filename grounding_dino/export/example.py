"""Pictures and names that graphs are traced and checked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.export.graph import PICTURE_INPUTS, DetectorGraph
from grounding_dino.text.batch import collate_prompts

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = (("cat", "red circle", "traffic light"), ("dog", "cat"))


@dataclass(frozen=True)
class Example:
    """Pictures (3, h, w) float of 0 to 255, and the names that each is asked for; none of fixed classes."""

    pictures: list[Tensor]
    names: list[list[str]]

    @classmethod
    def of_size(cls, size: Sequence[int], count: int = 2, seed: int = 0) -> Example:
        """Smooth colours: the first picture of `size` (h, w), others smaller, and texts of different lengths."""
        generator = torch.Generator().manual_seed(seed)
        pictures = []
        for number in range(count):
            height, width = (max(1, side - side * number // (4 + axis)) for axis, side in enumerate(size))
            coarse = torch.rand(1, 3, 12, 12, generator=generator)
            pictures.append(255 * F.interpolate(coarse, (height, width), mode="bilinear")[0])
        return cls(pictures, [list(NAMES[number % len(NAMES)]) for number in range(count)])

    def picture(self, index: int) -> Example:
        """One of them alone."""
        return Example([self.pictures[index]], [self.names[index]])

    def inputs(self, graph: DetectorGraph) -> dict[str, Tensor]:
        """The graph's inputs by name: all pictures in one padded batch."""
        divisor = max(1, graph.model.divisibility) if graph.model.padding_counts else 1
        height, width = (-(-max(p.shape[axis] for p in self.pictures) // divisor) * divisor for axis in (1, 2))
        images = torch.zeros(len(self.pictures), 3, height, width)
        mask = torch.ones(len(self.pictures), height, width, dtype=torch.bool)
        for row, picture in enumerate(self.pictures):
            images[row, :, : picture.shape[1], : picture.shape[2]] = picture
            mask[row, : picture.shape[1], : picture.shape[2]] = False
        inputs = {"images": images, "padding_mask": mask}
        if graph.input_names == PICTURE_INPUTS:
            return inputs
        text = collate_prompts([self._prompts(graph.model, names)[0] for names in self.names])
        return {
            **inputs,
            "input_ids": text.input_ids,
            "position_ids": text.position_ids,
            "text_padding_mask": text.padding_mask,
            "text_attention_mask": text.attention_mask,
        }

    def answers(self, graph: DetectorGraph) -> dict[str, Tensor]:
        """What the model itself finds in the first picture, by the graph's names of outputs."""
        model = graph.model
        asked = model.classes if model.text_encoder is None else self._prompts(model, self.names[0])[0]
        with torch.no_grad():
            return dict(zip(graph.output_names, graph.answers(self.pictures[0], asked)))

    def _prompts(self, model: Any, names: list[str]) -> Any:
        return model.text_encoder.prompts.of_categories(names)
