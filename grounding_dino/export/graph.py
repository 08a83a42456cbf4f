"""Detectors as functions from tensors to tensors, which can be traced for every batch, picture size and text length.

Inputs, in this order; B pictures of H x W pixels with padding, T text tokens:

| name | shape | meaning |
|---|---|---|
| `images` | (B, 3, H, W) float32 | 0 to 255 in the channel order of INPUT.FORMAT; anything on padding |
| `padding_mask` | (B, H, W) bool | True on padding, which lies right and below |
| `input_ids`, `position_ids` | (B, T) int64 | of models with text: see `TokenizedText` |
| `text_padding_mask` | (B, T) bool | True on padding |
| `text_attention_mask` | (B, T, T) bool | True where a token (row) attends to another (column) |

Outputs: `pred_logits` (B, Q, T or K), -inf on padded tokens and for queries that a picture has no image tokens for;
`pred_boxes` (B, Q, 4) cxcywh in [0, 1] of each picture without its padding; of models with masks `pred_masks`
(B, Q, h, w) logits of cells of 4 x 4 pixels from the picture's corner. Q is always that of the configuration.
Where padding counts (Mask DINO: `MODEL.PADDING_MASK_ON False`), boxes and masks are relative to the picture padded to
multiples of `MODEL.SIZE_DIVISIBILITY`, and so are H and W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grounding_dino.export.padding import PictureSizes, Windows, as_if_alone
from grounding_dino.modeling.meta_arch.detector import size_of
from grounding_dino.structures import FeaturePyramid, Memory, Predictions, TextFeatures, TokenizedText

import torch.nn.functional as F
from torch import Tensor, nn

PICTURE_INPUTS = ("images", "padding_mask")
TEXT_INPUTS = ("input_ids", "position_ids", "text_padding_mask", "text_attention_mask")
AXES: dict[str, dict[int, str]] = {
    "images": {0: "batch", 2: "height", 3: "width"},
    "padding_mask": {0: "batch", 1: "height", 2: "width"},
    "input_ids": {0: "batch", 1: "tokens"},
    "position_ids": {0: "batch", 1: "tokens"},
    "text_padding_mask": {0: "batch", 1: "tokens"},
    "text_attention_mask": {0: "batch", 1: "tokens", 2: "tokens"},
}


class DetectorGraph(nn.Module):
    """A detector of fixed classes: pictures with their padding -> predictions."""

    input_names: tuple[str, ...] = PICTURE_INPUTS

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self.windows = Windows(model.backbone)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `forward` returns, by name."""
        return (
            ("pred_logits", "pred_boxes") if self.model.masks is None else ("pred_logits", "pred_boxes", "pred_masks")
        )

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        """See the module."""
        return self.find(images, padding_mask, None)

    def find(self, images: Tensor, padding_mask: Tensor, text: TextFeatures | None) -> tuple[Tensor, ...]:
        """The predictions for encoded text."""
        model = self.model
        sizes = PictureSizes.of_mask(padding_mask)
        if model.padding_counts:
            sizes = sizes.rounded_up(model.divisibility)
        pixels = ((images - model.pixel_mean) / model.pixel_std).masked_fill(padding_mask[:, None], 0.0)
        with as_if_alone(model, self.windows, sizes):
            maps, mask_map = model._project(pixels)
            masks = [sizes.padding(size_of(m), stride) for m, stride in zip(maps, self.strides())]
            features = FeaturePyramid(maps, masks, has_padding=True, mask_map=mask_map)
            with _constant_number_of_queries(model.query_selection):
                found: Predictions = model.find(features, text).layers[-1]
        return _outputs(found)

    def answers(self, picture: Tensor, asked: Any) -> tuple[Tensor, ...]:
        """What the model itself finds in a picture (3, h, w), asked for a prompt or its classes; as `forward`."""
        features = self.model.extract_features(self.model.preprocess_image([{"image": picture}]))
        found: Predictions = self.model.detect(features, [asked]).layers[-1]
        return _outputs(found)

    def strides(self) -> list[int]:
        """Pixels to a cell of each level, finest first."""
        shapes = self.model.backbone.output_shape()
        strides = [int(shapes[name].stride) for name in self.model.in_features]
        while len(strides) < self.model.input_projection.num_levels:
            strides.append(2 * strides[-1])
        return strides


class TextDetectorGraph(DetectorGraph):
    """A detector of what a text names: pictures with their padding, and tokens -> predictions."""

    input_names = PICTURE_INPUTS + TEXT_INPUTS

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        padding_mask: Tensor,
        input_ids: Tensor,
        position_ids: Tensor,
        text_padding_mask: Tensor,
        text_attention_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """See the module."""
        encoder = self.model.text_encoder
        tokens = TokenizedText(input_ids, text_padding_mask, text_attention_mask, position_ids)
        embeddings = encoder.projection(encoder.encode(tokens))
        text = TextFeatures(embeddings, text_padding_mask, text_attention_mask, position_ids)
        return self.find(images, padding_mask, text)


def _outputs(found: Predictions) -> tuple[Tensor, ...]:
    outputs = (found.pred_logits, found.pred_boxes)
    return outputs if found.pred_masks is None else (*outputs, found.pred_masks)


def _dino_graph(model: Any) -> DetectorGraph:
    return DetectorGraph(model) if model.text_encoder is None else TextDetectorGraph(model)


def _glip_graph(model: Any) -> DetectorGraph:
    from grounding_dino.export.glip_graph import GlipGraph

    return GlipGraph(model)


# By MODEL.META_ARCHITECTURE.
GRAPHS: dict[str, Callable[[Any], DetectorGraph]] = {"GeneralizedDINO": _dino_graph, "GLIP": _glip_graph}


def graph_of(model: nn.Module) -> DetectorGraph:
    """The graph of a model.

    Raises:
        ValueError: nobody has described one for this kind of model.
    """
    name = type(model).__name__
    if name not in GRAPHS:
        raise ValueError(
            f"a {name} (MODEL.META_ARCHITECTURE) cannot be exported; known are {', '.join(sorted(GRAPHS))}"
        )
    return GRAPHS[name](model)


@contextmanager
def _constant_number_of_queries(selection: Any) -> Iterator[None]:
    """Let `QuerySelection` give as many queries whatever the picture's size: its surplus is marked as padding.

    A model gives fewer queries for a picture with fewer tokens; a graph's surplus has logits of -inf instead.
    """
    if not hasattr(selection, "select"):  # queries that are learned
        yield
        return
    count = selection.num_queries

    def select(scores: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        scores = F.pad(scores.masked_fill(memory.padding_mask, -math.inf), (0, count), value=-math.inf)
        padding_mask = F.pad(memory.padding_mask, (0, count), value=True)
        indices = scores.topk(count, dim=1).indices
        return indices.clamp(max=memory.padding_mask.shape[1] - 1), padding_mask.gather(1, indices)

    selection.select = select
    try:
        yield
    finally:
        del selection.select
