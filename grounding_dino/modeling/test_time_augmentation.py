"""Semantic segmentation averaged over sizes and mirror images of a picture, as MaskFormer and Mask DINO test it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torch import Tensor, nn


class SemanticSegmentorWithTTA(nn.Module):
    """A model whose `sem_seg` is the mean over pictures resized to several sizes, and over their mirror images.

    One of them at a time goes through the model, and only the sum of their results is kept. As in Detectron2, it is the
    picture as the loader gives it, of INPUT.MIN_SIZE_TEST, that is resized. There are no other results.

    Args:
        model: gives `sem_seg` (K, H, W) in the `height` and `width` of an input.
        min_sizes: of the shorter side, in pixels.
        max_size: of the longer side at most.
        flip: mirror images as well.

    Raises:
        ValueError: there is no size, or one that cannot be.
    """

    @configurable
    def __init__(self, model: nn.Module, *, min_sizes: Sequence[int], max_size: int, flip: bool = True) -> None:
        super().__init__()
        if not min_sizes or min(min_sizes) < 1 or max_size < 1:
            raise ValueError(
                f"TEST.AUG.MIN_SIZES is {tuple(min_sizes)} and MAX_SIZE {max_size}; give one size or more, in pixels"
            )
        self.model = model
        self.resizings = [T.ResizeShortestEdge(size, max_size) for size in min_sizes]
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Read TEST.AUG."""
        options = cfg.TEST.AUG
        return {"model": model, "min_sizes": options.MIN_SIZES, "max_size": options.MAX_SIZE, "flip": options.FLIP}

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """`sem_seg` (K, H, W) of each picture, in its `height` and `width`, by default those of `image`."""
        return [{"sem_seg": self._mean(inputs)} for inputs in batched_inputs]

    def _mean(self, inputs: dict[str, Any]) -> Tensor:
        height, width = inputs["image"].shape[-2:]
        size = {"height": inputs.get("height", height), "width": inputs.get("width", width)}
        total, number = torch.zeros(()), 0
        for image, mirrored in self._images(inputs["image"]):
            scores = self.model([{**inputs, **size, "image": image}])[0]["sem_seg"]
            scores = scores.flip(-1) if mirrored else scores
            total = total.add_(scores) if number else scores.clone()
            number += 1
        return total.div_(number)

    def _images(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Each image (C, h, w) that goes through the model, and whether it is mirrored."""
        pixels = image.permute(1, 2, 0).cpu().numpy()
        for resizing in self.resizings:
            resized = resizing.get_transform(pixels).apply_image(pixels)
            sized = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
            yield sized, False
            if self.flip:
                yield sized.flip(-1), True
