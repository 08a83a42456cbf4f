"""Denoising: noised ground truth as extra decoder queries (Li et al., "DN-DETR"; Zhang et al., "DINO", section 3.3).

Each group holds every target once with little noise on its box (positive, to be reconstructed) and, in contrastive
denoising, once more with much (negative, to be called background). The content of such a query is a learned row per
label; with text, a label is the position of a name in its picture's prompt, and no text feature enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.layers.box_ops import as_float32_at_least, box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, inverse_sigmoid
from grounding_dino.layers.transfer import to_device
from grounding_dino.structures import DenoisingBatch, Targets

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

BOX_NOISES = ("corners", "centre_and_size")


@dataclass(frozen=True)
class DenoisingNoise:
    """The random numbers of one batch: G groups, then H halves (positive, negative), then N targets of the batch."""

    label_uniform: Tensor  # (G, H, N) in [0, 1)
    label_replacement: Tensor  # (G, H, N) int64, used where label_uniform is below half the noise ratio
    box_sign: Tensor  # (G, H, N, 4) -1 or 1
    box_uniform: Tensor  # (G, H, N, 4) in [0, 1)


@dataclass(frozen=True)
class _Layout:
    """Where each kept target of the batch goes."""

    num_groups: int
    max_targets: int
    picture: Tensor  # (N,) int64
    position: Tensor  # (N,) int64: place among the kept targets of its picture
    target: Tensor  # (N,) int64: index in the batch's concatenated targets
    positives: Tensor  # (3, groups x N) int64: picture, slot and target of each positive


class DenoisingGenerator(nn.Module):
    """Makes the denoising queries of a training batch; `label_embedding.weight` (num_labels, C) is its only parameter.

    The number of groups is max(min_groups, num_queries // largest target count), lowered so that all slots of a
    picture, halves x groups x that count, stay within `max_queries`. A picture with more targets than a half may have
    slots takes part with a random subset of them, drawn anew each time; the matching loss still sees all its targets.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        num_labels: int,
        num_queries: int = 100,
        max_queries: int = 2000,
        num_groups: int = 0,
        min_groups: int = 1,
        contrastive: bool = True,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        box_noise: str = "corners",
        reference_eps: float = 1e-3,
    ) -> None:
        """
        Args:
            embed_dim: channels C of a query.
            num_labels: rows of the label embedding; every label must be smaller.
            num_queries: queries aimed at in each half (positive, negative).
            max_queries: upper bound on the slots of a picture.
            num_groups: a fixed number of groups, whatever the targets; 0 goes by `num_queries`.
            min_groups: 0 leaves denoising out where there are more targets than `num_queries`.
            contrastive: with negatives.
            label_noise_ratio: twice the share of labels that are replaced by random ones.
            box_noise_scale: of "corners", their shift in half box sizes: positives stay below it, negatives lie between
                it and its double; of "centre_and_size", that of the centre in half box sizes, of the size in box sizes.
            box_noise: what moves, "corners" or "centre_and_size".
            reference_eps: of the inverse sigmoid that noised boxes pass through.

        Raises:
            ValueError: a value is unknown or out of range.
        """
        super().__init__()
        if box_noise not in BOX_NOISES:
            raise ValueError(f"unknown MODEL.DENOISING.BOX_NOISE {box_noise!r}; choose from {BOX_NOISES}")
        if contrastive and box_noise != "corners":
            raise ValueError("MODEL.DENOISING.CONTRASTIVE_ON needs BOX_NOISE 'corners', of which negatives have more")
        if max_queries < 2:
            raise ValueError(f"max_queries (MODEL.DENOISING.MAX_QUERIES) is {max_queries}; it must be at least 2")
        self.num_queries = num_queries
        self.max_queries = max_queries
        self.num_groups = num_groups
        self.min_groups = min_groups
        self.halves = 2 if contrastive else 1
        self.box_noise = box_noise
        self.reference_eps = reference_eps
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.label_embedding = nn.Embedding(num_labels, embed_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.DENOISING, MODEL.EMBED_DIM and the decoder's REFERENCE_EPS."""
        return {
            "embed_dim": cfg.MODEL.EMBED_DIM,
            "num_labels": cfg.MODEL.DENOISING.NUM_LABELS,
            "num_queries": cfg.MODEL.DENOISING.NUM_QUERIES,
            "max_queries": cfg.MODEL.DENOISING.MAX_QUERIES,
            "num_groups": cfg.MODEL.DENOISING.NUM_GROUPS,
            "min_groups": cfg.MODEL.DENOISING.MIN_GROUPS,
            "contrastive": cfg.MODEL.DENOISING.CONTRASTIVE_ON,
            "box_noise": cfg.MODEL.DENOISING.BOX_NOISE,
            "reference_eps": cfg.MODEL.TRANSFORMER_DECODER.REFERENCE_EPS,
            "label_noise_ratio": cfg.MODEL.DENOISING.LABEL_NOISE_RATIO,
            "box_noise_scale": cfg.MODEL.DENOISING.BOX_NOISE_SCALE,
        }

    def forward(self, targets: Sequence[Targets], num_queries: int) -> DenoisingBatch:
        """Queries that denoise `targets`, to stand before `num_queries` matching queries.

        A batch without targets gives zero slots, still connected to the label embedding, so that every process of a
        distributed training has a gradient for it.

        Raises:
            ValueError: a label has no row in the label embedding.
        """
        layout = self._layout(targets)
        labels = torch.cat([t.labels for t in targets])[layout.target]
        boxes = as_float32_at_least(torch.cat([t.boxes for t in targets]))[layout.target]
        if labels.device.type == "cpu":  # else it would wait for the device; the model checks them on their way there
            self.check_labels(labels)
        noise = self.draw_noise(layout.num_groups, len(labels), boxes.device)
        groups, width, batch, halves = layout.num_groups, layout.max_targets, len(targets), self.halves

        content = self.label_embedding(self._noised_labels(labels, noise))  # (G, H, N, C)
        references = self._noised_boxes(boxes, noise)  # (G, H, N, 4)
        # Advanced indices with slices between them put the indexed axis first: hence the moved axes.
        slots = (layout.picture, slice(None), slice(None), layout.position)
        slot_content = content.new_zeros(batch, groups, halves, width, content.shape[-1])
        slot_content[slots] = content.movedim(2, 0)
        slot_references = references.new_full((batch, groups, halves, width, 4), 0.5)
        slot_references[slots] = references.movedim(2, 0)
        picture, slot, target = layout.positives
        target_index = target.new_full((batch, groups * halves * width), -1)
        target_index[picture, slot] = target
        return DenoisingBatch(
            content=slot_content.flatten(1, 3),
            reference_points=slot_references.flatten(1, 3),
            num_groups=groups,
            max_targets=width,
            attention_mask=denoising_attention_mask(groups, halves * width, num_queries, boxes.device),
            target_index=target_index,
            positives=layout.positives,
            num_positives=groups * len(labels),
        )

    def draw_noise(self, num_groups: int, num_targets: int, device: torch.device) -> DenoisingNoise:
        """Fresh random numbers; replace this method to inject known ones."""
        shape = (num_groups, self.halves, num_targets)
        return DenoisingNoise(
            label_uniform=torch.rand(shape, device=device),
            label_replacement=torch.randint(self.label_embedding.num_embeddings, shape, device=device),
            box_sign=torch.randint(2, (*shape, 4), device=device) * 2.0 - 1.0,
            box_uniform=torch.rand((*shape, 4), device=device),
        )

    def _layout(self, targets: Sequence[Targets]) -> _Layout:
        limit = self.max_queries // self.halves
        picture: list[int] = []
        position: list[int] = []
        target: list[int] = []
        first = 0
        for index, count in enumerate(len(t) for t in targets):
            kept = range(count) if count <= limit else sorted(torch.randperm(count)[:limit].tolist())
            picture += [index] * len(kept)
            position += range(len(kept))
            target += [first + k for k in kept]
            first += count
        width = min(limit, max((len(t) for t in targets), default=0))
        groups = self._groups(width, limit)
        if groups == 0:
            width, picture, position, target = 0, [], [], []
        kept_targets = torch.tensor([picture, position, target], dtype=torch.int64)  # (3, N)
        positives = _positives(kept_targets, groups, self.halves * width)
        on_device = to_device(torch.cat([kept_targets, positives], dim=1), self.label_embedding.weight.device)
        kept_targets, positives = on_device.split([kept_targets.shape[1], positives.shape[1]], dim=1)
        of_picture, place, index = kept_targets.unbind()
        return _Layout(groups, width, of_picture, place, index, positives)

    def _groups(self, width: int, limit: int) -> int:
        if width == 0:
            return 1
        if self.num_groups:
            return min(self.num_groups, limit // width)
        return max(self.min_groups, min(self.num_queries, limit) // width)

    def _noised_labels(self, labels: Tensor, noise: DenoisingNoise) -> Tensor:
        replaced = noise.label_uniform < self.label_noise_ratio / 2
        return torch.where(replaced, noise.label_replacement, labels)

    def _noised_boxes(self, boxes: Tensor, noise: DenoisingNoise) -> Tensor:
        """Move (N, 4) cxcywh boxes -> (G, H, N, 4) cxcywh in [0, 1]."""
        if self.box_noise == "corners":
            negative = torch.arange(self.halves, device=boxes.device)[:, None, None]
            half_size = boxes[:, 2:].repeat(1, 2) / 2
            shift = noise.box_sign * (noise.box_uniform + negative) * half_size * self.box_noise_scale
            corners = (box_cxcywh_to_xyxy(boxes) + shift).clamp(min=0, max=1)
            moved = box_xyxy_to_cxcywh(corners)
        else:
            extent = torch.cat((boxes[:, 2:] / 2, boxes[:, 2:]), dim=-1)
            shift = noise.box_sign * noise.box_uniform * extent * self.box_noise_scale
            moved = (boxes + shift).clamp(min=0, max=1)
        return inverse_sigmoid(moved, eps=self.reference_eps).sigmoid()

    def check_labels(self, labels: Tensor) -> None:
        """See that every label (N,) has a row in the label embedding.

        Raises:
            ValueError: one has not.
        """
        rows = self.label_embedding.num_embeddings
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < rows:
            raise ValueError(
                f"target labels run from {int(labels.min())} to {int(labels.max())}, but the denoising label embedding "
                f"has the rows 0 to {rows - 1}; raise MODEL.DENOISING.NUM_LABELS or list fewer categories in a prompt"
            )


def _positives(kept_targets: Tensor, num_groups: int, group_size: int) -> Tensor:
    """From picture, place and index of N targets (3, N) to picture, slot and index (3, groups x N) of the positives."""
    first = torch.arange(num_groups) * group_size
    picture, position, target = kept_targets.repeat_interleave(num_groups, dim=1)
    slot = position + first.repeat(kept_targets.shape[1])
    order = torch.argsort(picture * (num_groups * group_size) + slot)
    return torch.stack((picture, slot, target))[:, order]


def denoising_attention_mask(num_groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    """(D + Q, D + Q) bool, True where attention is allowed, for D = groups x slots of a group before Q queries.

    Matching queries do not see any slot (they would read the answer) and a group does not see another group. Slots do
    see the matching queries. Unused slots are treated like used ones, as in the published models.
    """
    slots = num_groups * group_size
    group = torch.arange(slots, device=device) // max(1, group_size)
    allowed = torch.ones(slots + num_queries, slots + num_queries, dtype=torch.bool, device=device)
    allowed[slots:, :slots] = False
    allowed[:slots, :slots] = group[:, None] == group
    return allowed
