"""GLIP as a function from tensors to tensors: every place of its pyramid is a query.

Inputs as in :mod:`grounding_dino.export.graph`. Padding counts as picture in GLIP, so pictures are padded to multiples
of the description's `size_divisibility`, and only those of one padded size stand in a batch.

Outputs: `pred_logits` (B, S, T), -inf on padded tokens; `pred_boxes` (B, S, 4) cxcywh, as shares of the padded picture
and not clipped; `pred_quality` (B, S) logits of centerness. S counts the places of all levels, finest first.
"""

from __future__ import annotations

from typing import Any

from grounding_dino.export.graph import TextDetectorGraph
from grounding_dino.layers.box_ops import box_xyxy_to_cxcywh
from grounding_dino.modeling.dense_head.anchors import decode_boxes
from grounding_dino.modeling.meta_arch.detector import padded_to_multiple
from grounding_dino.structures import DensePredictions, TextFeatures

import torch
from torch import Tensor


class GlipGraph(TextDetectorGraph):
    """Pictures with their padding, and tokens -> predictions for every place."""

    output_names = ("pred_logits", "pred_boxes", "pred_quality")

    def find(self, images: Tensor, padding_mask: Tensor, text: TextFeatures | None) -> tuple[Tensor, ...]:
        """The predictions for encoded text."""
        assert text is not None
        model: Any = self.model
        pixels = ((images - model.pixel_mean) / model.pixel_std).masked_fill(padding_mask[:, None], 0.0)
        found = model.head_outputs(model.extract_features(pixels), model.with_prompt_vectors(text))
        return self._outputs(found, images)

    def answers(self, picture: Tensor, asked: Any) -> tuple[Tensor, ...]:
        """As :meth:`DetectorGraph.answers`."""
        images = self.model.preprocess_image([{"image": picture}])
        padded = padded_to_multiple(images[0], self.model.divisibility)[None]
        return self._outputs(self.model.detect(self.model.extract_features(padded), [asked]), padded)

    def _outputs(self, found: DensePredictions, images: Tensor) -> tuple[Tensor, ...]:
        corners = decode_boxes(torch.cat(found.box_deltas, 1), torch.cat(self.model.anchors(found)))
        x, y, w, h = box_xyxy_to_cxcywh(corners).unbind(-1)
        height, width = images.shape[-2:]
        boxes = torch.stack((x / width, y / height, w / width, h / height), -1)
        return torch.cat(found.token_logits, 1), boxes, torch.cat(found.centerness, 1)

    def strides(self) -> list[int]:
        """Pixels to a cell of each level, finest first."""
        return list(self.model.strides)
