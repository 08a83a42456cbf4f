"""The dataclasses that cross module borders.

Shape letters: B batch, T text tokens, S image tokens of all levels, Q queries, C channels, L levels,
K classes or text tokens, N objects of one picture. Conventions: batch first; ``*_padding_mask`` is True on
padding; ``*_attention_mask`` is True where attention is allowed; boxes are cxcywh in [0, 1].
A structure is never edited by its receiver: use :func:`dataclasses.replace`.

Prompts serve exported models too, which run where torch is not installed: it is imported on use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
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

    def __hash__(self) -> int:
        """Of what tells prompts apart already: caches look them up for every picture."""
        return hash((self.caption, self.input_ids))


@dataclass(frozen=True)
class TokenizedText:
    """A padded batch of prompts, ready for a text encoder."""

    input_ids: Tensor  # (B, T) int64, 0 on padding
    padding_mask: Tensor  # (B, T) bool, True on padding
    attention_mask: Tensor  # (B, T, T) bool, True where attention is allowed
    position_ids: Tensor  # (B, T) int64, counted from 0 inside each phrase
    has_padding: bool = True  # as in FeaturePyramid


@dataclass(frozen=True)
class TextFeatures:
    """Encoded text: `embeddings` (B, T, C) and the masks and positions of its tokens."""

    embeddings: Tensor
    padding_mask: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    has_padding: bool = True  # as in FeaturePyramid

    @property
    def keys_padding_mask(self) -> Tensor | None:
        """The padding mask for attention to this text; None without padding, where every key counts."""
        return self.padding_mask if self.has_padding else None


@dataclass(frozen=True)
class FeaturePyramid:
    """Projected feature maps of a batch, finest level first, padded to the batch's largest."""

    maps: list[Tensor]  # L x (B, C, h, w)
    padding_masks: list[Tensor]  # L x (B, h, w) bool, True on padding
    has_padding: bool = True  # False: the host knows that no mask has a True, without waiting for the device
    mask_map: Tensor | None = None  # (B, C, H/4, W/4): the backbone's map of stride 4, projected for mask features
    frames: tuple[tuple[int, int], ...] = ()  # (h, w) pixels that each picture's boxes and masks are relative to
    fewest_tokens: int = 0  # what a picture has at least of unpadded tokens, as far as the host knows without waiting

    def select(self, pictures: list[int]) -> FeaturePyramid:
        """The pyramid of some of the batch's pictures (repeats allowed), in that order."""
        if pictures == list(range(len(self.maps[0]))):
            return self
        maps, masks = ([level[pictures] for level in levels] for levels in (self.maps, self.padding_masks))
        mask_map = None if self.mask_map is None else self.mask_map[pictures]
        frames = tuple(self.frames[i] for i in pictures if self.frames)
        return FeaturePyramid(maps, masks, self.has_padding, mask_map, frames, self.fewest_tokens)


@dataclass(frozen=True)
class Memory:
    """Image tokens of all levels, finest level first, flattened and concatenated."""

    features: Tensor  # (B, S, C)
    padding_mask: Tensor  # (B, S) bool, True on padding
    spatial_shapes: Tensor  # (L, 2) int64, h w
    level_start_index: Tensor  # (L,) int64
    valid_ratios: Tensor  # (B, L, 2) w h: unpadded share of each level
    mask_features: Tensor | None = None  # (B, C, H/4, W/4)
    mask_ratios: Tensor | None = None  # (B, 2) w h: unpadded share of the mask features
    has_padding: bool = True  # as in FeaturePyramid
    fewest_tokens: int = 0  # as in FeaturePyramid
    sizes: tuple[tuple[int, int], ...] = ()  # L x (h, w): spatial_shapes as the host knows them


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
class DensePredictions:
    """One prediction for every place of every level (GLIP), places in rows, levels finest first.

    Places of level l lie at (column + 0.5, row + 0.5) x its stride in pixels of the padded picture.
    """

    token_logits: list[Tensor]  # L x (B, h * w, T); -inf at padded text tokens
    box_deltas: list[Tensor]  # L x (B, h * w, 4): see `anchors.decode_boxes`
    centerness: list[Tensor]  # L x (B, h * w) logits
    sizes: tuple[tuple[int, int], ...]  # (h, w) of each level

    def of_picture(self, index: int) -> DensePredictions:
        """One picture's, without the batch axis."""
        return DensePredictions(
            [level[index] for level in self.token_logits],
            [level[index] for level in self.box_deltas],
            [level[index] for level in self.centerness],
            self.sizes,
        )


@dataclass(frozen=True)
class Targets:
    """Ground truth of one picture with N objects."""

    labels: Tensor  # (N,) int64: index into the picture's categories (or phrases), or column of the class head
    boxes: Tensor  # (N, 4) cxcywh in [0, 1] of the unpadded picture
    masks: Tensor | None = None  # (N, H, W) bool
    positive_map: Tensor | None = None  # (N, T) float: 1 on the tokens of the object's text, else 0
    is_thing: Tensor | None = None  # (N,) bool: False has no box loss; None: all have

    def __len__(self) -> int:
        return len(self.labels)


def _empty(*shape: int, dtype: str) -> Tensor:
    import torch

    return torch.empty(*shape, dtype=getattr(torch, dtype))


@dataclass(frozen=True)
class DenoisingBatch:
    """Noised ground truth as extra decoder queries, and how to read their predictions.

    Slot layout of one picture: group-major, and within a group first the `max_targets` positives, then, in contrastive
    denoising, as many negatives (DINO, section 3.3).
    """

    content: Tensor  # (B, D, C); zero in unused slots
    reference_points: Tensor  # (B, D, 4) cxcywh in [0, 1]
    num_groups: int
    max_targets: int
    attention_mask: Tensor = field(repr=False, default_factory=lambda: _empty(0, 0, dtype="bool"))
    # (D + Q, D + Q) bool, True where attention is allowed
    target_index: Tensor = field(repr=False, default_factory=lambda: _empty(0, 0, dtype="int64"))
    # (B, D) int64: which target (counted through the batch) a positive slot rebuilds; -1 on negative and unused slots
    positives: Tensor = field(repr=False, default_factory=lambda: _empty(3, 0, dtype="int64"))
    # (3, num_positives) int64: picture, slot and target of each positive, picture by picture, slots in order
    num_positives: int = 0  # of the batch: kept targets x groups


Item = TypeVar("Item")


class InstanceList(list[Item]):
    """One item an instance; also indexed by the masks and index tensors that `Instances` is indexed with."""

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, (int, slice)):
            chosen = super().__getitem__(item)
            return type(self)(chosen) if isinstance(chosen, list) else chosen
        indices = np.arange(len(self))[np.asarray(item.cpu() if hasattr(item, "cpu") else item)]
        if indices.ndim == 0:
            return super().__getitem__(int(indices))
        return type(self)(super(InstanceList, self).__getitem__(i) for i in indices.tolist())


class RleMasks(InstanceList[dict[str, Any]]):
    """Masks in COCO's compressed run-length encoding, one an instance: dicts of `size` [h, w] and `counts` (str)."""

    @classmethod
    def encode(cls, masks: Tensor) -> RleMasks:
        """Encode bool masks (N, H, W)."""
        from pycocotools import mask as coco_mask

        arrays = np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0).astype(np.uint8))
        found: Iterable[dict[str, Any]] = coco_mask.encode(arrays) if len(masks) else ()
        return cls({"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in found)

    def decode(self) -> Tensor:
        """(N, H, W) bool; (0, 0, 0) without masks."""
        import torch
        from pycocotools import mask as coco_mask

        if not self:
            return torch.zeros(0, 0, 0, dtype=torch.bool)
        return torch.from_numpy(coco_mask.decode(list(self)).transpose(2, 0, 1).astype(bool))
