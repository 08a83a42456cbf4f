"""The dataclasses that cross module borders.

Shape letters: B batch, T text tokens, S image tokens of all levels, Q queries, C channels, L levels,
K classes or text tokens, N objects of one picture. Conventions: batch first; ``*_padding_mask`` is True on
padding; ``*_attention_mask`` is True where attention is allowed; boxes are cxcywh in [0, 1].
A structure is never edited by its receiver: use :func:`dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One row of text for the model: a caption, its tokens, and where in them each category stands.

    A list of categories too long for one row becomes several prompts; `category_indices` keeps the global
    index of each of this row's categories. `token_spans[i]` lists the half-open token ranges of the row's i-th
    category (or phrase), its closing delimiter excluded. `attention_ranges[t]` is the half-open range of
    tokens that token t may attend to.
    """

    caption: str
    input_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    attention_ranges: tuple[tuple[int, int], ...]
    token_spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    category_indices: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class TokenizedText:
    """A padded batch of prompts, ready for a text encoder."""

    input_ids: Tensor  # (B, T) int64, 0 on padding
    padding_mask: Tensor  # (B, T) bool, True on padding
    attention_mask: Tensor  # (B, T, T) bool, True where attention is allowed
    position_ids: Tensor  # (B, T) int64, counted from 0 inside each phrase


@dataclass(frozen=True)
class TextFeatures:
    """Encoded text: `embeddings` (B, T, C) and the masks and positions of its tokens."""

    embeddings: Tensor
    padding_mask: Tensor
    attention_mask: Tensor
    position_ids: Tensor


@dataclass(frozen=True)
class FeaturePyramid:
    """Projected feature maps of a batch, finest level first, padded to the batch's largest."""

    maps: list[Tensor]  # L x (B, C, h, w)
    padding_masks: list[Tensor]  # L x (B, h, w) bool, True on padding
    has_padding: bool = True  # False: the host knows that no mask has a True, without waiting for the device
    mask_map: Tensor | None = None  # (B, C, H/4, W/4): the finest backbone map, projected for mask features
    mask_map_sizes: tuple[tuple[int, int], ...] = ()  # (h, w) of each picture's own part of it

    def select(self, pictures: list[int]) -> FeaturePyramid:
        """The pyramid of some of the batch's pictures (repeats allowed), in that order."""
        if pictures == list(range(len(self.maps[0]))):
            return self
        maps, masks = ([level[pictures] for level in levels] for levels in (self.maps, self.padding_masks))
        return FeaturePyramid(maps, masks, self.has_padding)


@dataclass(frozen=True)
class Memory:
    """Image tokens of all levels, finest level first, flattened and concatenated."""

    features: Tensor  # (B, S, C)
    padding_mask: Tensor  # (B, S) bool, True on padding
    spatial_shapes: Tensor  # (L, 2) int64, h w
    level_start_index: Tensor  # (L,) int64
    valid_ratios: Tensor  # (B, L, 2) w h: unpadded share of each level
    mask_features: Tensor | None = None  # (B, C, H/4, W/4)
    has_padding: bool = True  # as in FeaturePyramid


@dataclass(frozen=True)
class Queries:
    """What enters the decoder; denoising queries, if any, come first."""

    content: Tensor  # (B, Q, C)
    reference_points: Tensor  # (B, Q, 4) cxcywh in [0, 1]
    attention_mask: Tensor | None = None  # (Q, Q) bool, True where attention is allowed
    num_denoising: int = 0
    padding_mask: Tensor | None = None  # (B, Q) bool, True where a picture has fewer image tokens than Q


@dataclass(frozen=True)
class Predictions:
    """The output of one prediction stage."""

    pred_logits: Tensor  # (B, Q, K); -inf at padded text tokens
    pred_boxes: Tensor  # (B, Q, 4) cxcywh relative to the unpadded picture
    pred_masks: Tensor | None = None  # (B, Q, h, w) logits


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of every decoder layer (the last is the answer), of the encoder, and of the denoising queries."""

    layers: list[Predictions]
    encoder: Predictions | None = None
    denoising: list[Predictions] | None = None


@dataclass(frozen=True)
class Targets:
    """Ground truth of one picture with N objects."""

    labels: Tensor  # (N,) int64: index into the picture's categories (or phrases)
    boxes: Tensor  # (N, 4) cxcywh in [0, 1] of the unpadded picture
    masks: Tensor | None = None  # (N, H, W) bool
    positive_map: Tensor | None = None  # (N, T) float: 1 on the tokens of the object's text, else 0

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DenoisingBatch:
    """Noised ground truth as extra decoder queries, and how to read their predictions.

    Slot layout of one picture: group-major, and within a group first the `max_targets` positives, then as many
    negatives (DINO, section 3.3).
    """

    content: Tensor  # (B, D, C); zero in unused slots
    reference_points: Tensor  # (B, D, 4) cxcywh in [0, 1]
    num_groups: int
    max_targets: int
    attention_mask: Tensor = field(repr=False, default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    # (D + Q, D + Q) bool, True where attention is allowed
    target_index: Tensor = field(repr=False, default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    # (B, D) int64: which target (counted through the batch) a positive slot rebuilds; -1 on negative and unused slots
    num_positives: int = 0  # of the batch: kept targets x groups
