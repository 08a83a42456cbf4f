"""The training losses of the DINO family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.layers.box_ops import as_float32_at_least, box_cxcywh_to_xyxy, paired_generalized_box_iou
from grounding_dino.modeling.losses.functional import sigmoid_focal_loss
from grounding_dino.modeling.losses.mask_losses import MaskLosses, masks_of
from grounding_dino.modeling.losses.matcher import HungarianMatcher, Matches
from grounding_dino.structures import DecoderOutput, DenoisingBatch, Predictions, Targets

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

CLASS_LOSSES = ("focal", "cross_entropy")


@dataclass(frozen=True)
class _Stages:
    """Predictions of S stages, in float32 or better."""

    logits: Tensor  # (S, B, Q, K)
    boxes: Tensor  # (S, B, Q, 4)
    masks: list[Tensor] | None  # S x (B, Q, h, w); stacked they would take their memory twice
    suffixes: Sequence[str]  # of the names of their losses


class SetCriterion(nn.Module):
    """Losses of every prediction stage: each decoder layer, the encoder's proposals, and the denoising queries.

    Matched queries learn their target's classes (or text tokens, where targets have a `positive_map`), box and mask,
    all others are background. Sums are divided by the number of targets in the batch, averaged over processes;
    those of denoising queries by the number of positives.
    """

    @configurable
    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_loss: str = "focal",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        no_object_weight: float = 0.1,
        mask_losses: MaskLosses | None = None,
    ) -> None:
        """
        Args:
            matcher: pairs queries and targets.
            class_weight, l1_weight, giou_weight: factors of the three losses.
            class_loss: "focal", or "cross_entropy", whose last column means "no object".
            focal_alpha, focal_gamma: of the focal loss.
            no_object_weight: of queries without a target in the cross-entropy.
            mask_losses: None without masks.

        Raises:
            ValueError: an unknown class loss, or a cross-entropy in which a picture without objects has no weight.
        """
        super().__init__()
        if class_loss not in CLASS_LOSSES:
            raise ValueError(f"unknown MODEL.LOSS.CLASS {class_loss!r}; choose from {CLASS_LOSSES}")
        if class_loss == "cross_entropy" and no_object_weight <= 0:
            raise ValueError(
                f"MODEL.LOSS.NO_OBJECT_WEIGHT is {no_object_weight}; give more than 0, such as 0.1: the mean over "
                "queries is weighted by it, and would be 0 / 0 without objects"
            )
        self.matcher = matcher
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}
        self.class_loss = class_loss
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.no_object_weight = no_object_weight
        self.mask_losses = mask_losses

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.LOSS and MODEL.MATCHER."""
        loss = cfg.MODEL.LOSS
        masks = MaskLosses(
            mask_weight=loss.MASK_WEIGHT,
            dice_weight=loss.DICE_WEIGHT,
            num_points=loss.NUM_POINTS,
            oversample_ratio=loss.OVERSAMPLE_RATIO,
            importance_ratio=loss.IMPORTANCE_SAMPLE_RATIO,
        )
        return {
            "matcher": HungarianMatcher(cfg),
            "class_weight": loss.CLASS_WEIGHT,
            "l1_weight": loss.L1_WEIGHT,
            "giou_weight": loss.GIOU_WEIGHT,
            "class_loss": loss.CLASS,
            "focal_alpha": loss.FOCAL_ALPHA,
            "focal_gamma": loss.FOCAL_GAMMA,
            "no_object_weight": loss.NO_OBJECT_WEIGHT,
            "mask_losses": masks if cfg.MODEL.MASK_ON else None,
        }

    def forward(
        self,
        output: DecoderOutput,
        targets: Sequence[Targets],
        denoising: DenoisingBatch | None = None,
        text_padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted scalar losses.

        Args:
            output: predictions; `output.denoising` holds those of the slots of `denoising`, layer by layer.
            targets: of the B pictures, possibly without objects.
            denoising: where the slots came from. None gives no denoising losses; a batch without slots gives
                zeros that keep the label embedding in the graph.
            text_padding_mask: (B, T) bool, True on padded tokens; None for classes.

        Returns:
            `loss_class`, `loss_l1`, `loss_giou` (with masks `loss_mask`, `loss_dice`) of the last layer; with the
            suffix `_{layer}` of the earlier ones, `_encoder` of the proposals, `_denoising` and `_denoising_{layer}` of
            the denoising queries.

        Raises:
            ValueError: a positive map does not have one column per logit, or a target lacks masks.
            FloatingPointError: from the matcher, on predictions that are not finite.
        """
        with torch.autocast(output.layers[0].pred_logits.device.type, enabled=False):
            _check_positive_maps(targets, output.layers[0].pred_logits.shape[-1])
            valid = None if text_padding_mask is None else ~text_padding_mask
            device = output.layers[0].pred_logits.device
            num_targets, num_positives = self._normalisers(targets, denoising, device)
            losses: dict[str, Tensor] = {}
            for stages in self._matched_stages(output):
                matches = self.matcher(stages.logits, stages.boxes, targets, valid, stages.masks)
                losses |= self._compare(stages, targets, matches, valid, num_targets)
            if denoising is not None:
                losses |= self._denoising_losses(output, targets, denoising, valid, num_positives)
            return losses

    def _matched_stages(self, output: DecoderOutput) -> list[_Stages]:
        """The decoder's layers and the encoder: together where they have the same shape."""
        suffixes = _layer_suffixes(len(output.layers))
        if output.encoder is None:
            return [self._stack(output.layers, suffixes)]
        alike = output.encoder.pred_logits.shape == output.layers[0].pred_logits.shape
        if alike and (output.encoder.pred_masks is None) == (output.layers[0].pred_masks is None):
            return [self._stack([*output.layers, output.encoder], [*suffixes, "_encoder"])]
        return [self._stack(output.layers, suffixes), self._stack([output.encoder], ["_encoder"])]

    def _stack(self, stages: Sequence[Predictions], suffixes: Sequence[str]) -> _Stages:
        logits = torch.stack([p.pred_logits for p in stages])
        boxes = torch.stack([p.pred_boxes for p in stages])
        masks = None
        if self.mask_losses is not None and stages[0].pred_masks is not None:
            masks = [p.pred_masks for p in stages if p.pred_masks is not None]
        return _Stages(as_float32_at_least(logits), as_float32_at_least(boxes), masks, suffixes)

    def _denoising_losses(
        self,
        output: DecoderOutput,
        targets: Sequence[Targets],
        denoising: DenoisingBatch,
        valid: Tensor | None,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        suffixes = ["_denoising" + suffix for suffix in _layer_suffixes(len(output.layers))]
        if denoising.content.shape[1] == 0:
            zero = denoising.content.sum()  # of nothing, but part of the label embedding's graph
            names = [*self.weights, *([] if self.mask_losses is None else self.mask_losses.weights)]
            return {f"loss_{name}{suffix}": zero for suffix in suffixes for name in names}
        if output.denoising is None:
            raise ValueError(
                f"{denoising.content.shape[1]} denoising queries were made but the decoder's output has no predictions "
                "for them; set DecoderOutput.denoising to the first queries of each layer"
            )
        stages = self._stack(output.denoising, suffixes)
        picture, slot, target = denoising.positives
        matches = Matches(picture, slot.expand(len(suffixes), -1), target.expand(len(suffixes), -1))
        return self._compare(stages, targets, matches, valid, normaliser)

    def _compare(
        self,
        stages: _Stages,
        targets: Sequence[Targets],
        matches: Matches,
        valid: Tensor | None,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of S stages, given which query learns which target."""
        stage = torch.arange(len(stages.logits), device=stages.logits.device)[:, None]
        matched = (stage, matches.picture, matches.query)  # broadcasts to (S, M)
        gt_boxes = torch.cat([t.boxes for t in targets]).to(stages.boxes)[matches.target]  # (S, M, 4)
        pred_boxes = stages.boxes[matched]
        l1 = F.l1_loss(pred_boxes, gt_boxes, reduction="none").sum(-1)
        giou = 1 - paired_generalized_box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(gt_boxes))
        if any(t.is_thing is not None for t in targets):
            things = torch.cat(
                [torch.ones_like(t.labels, dtype=torch.bool) if t.is_thing is None else t.is_thing for t in targets]
            )[matches.target]  # (S, M)
            l1, giou = l1 * things, giou * things
        values = {
            "class": self._class_losses(stages.logits, targets, matches, matched, valid, normaliser),
            "l1": l1.sum(dim=1) * (self.weights["l1"] / normaliser),
            "giou": giou.sum(dim=1) * (self.weights["giou"] / normaliser),
        }
        losses = {name: value.unbind() for name, value in values.items()}
        found = {f"loss_{name}{suffix}": losses[name][i] for i, suffix in enumerate(stages.suffixes) for name in losses}
        if self.mask_losses is not None and stages.masks is not None:
            found |= self._mask_losses(stages.masks, targets, matches, normaliser, stages.suffixes)
        return found

    def _class_losses(
        self,
        logits: Tensor,
        targets: Sequence[Targets],
        matches: Matches,
        matched: tuple[Tensor, Tensor, Tensor],
        valid: Tensor | None,
        normaliser: Tensor,
    ) -> Tensor:
        """(S,) weighted class losses of logits (S, B, Q, K)."""
        if self.class_loss == "focal":
            gt_classes = torch.zeros_like(logits, dtype=torch.bool)
            gt_classes[matched] = _class_rows(targets, logits.shape[-1])[matches.target]
            valid = None if valid is None else valid[:, None]  # (B, 1, K)
            focal = sigmoid_focal_loss(logits, gt_classes, valid, self.focal_alpha, self.focal_gamma)
            return focal.sum(dim=(1, 2, 3)) * (self.weights["class"] / normaliser)
        no_object = logits.shape[-1] - 1
        labels = torch.full(logits.shape[:-1], no_object, device=logits.device)
        labels[matched] = torch.cat([t.labels for t in targets])[matches.target]
        weights = logits.new_ones(logits.shape[-1])
        weights[no_object] = self.no_object_weight
        # a mean weighted by class over the queries, whatever the number of targets
        losses = [F.cross_entropy(x.flatten(0, 1), y.flatten(), weights) for x, y in zip(logits, labels)]
        return self.weights["class"] * torch.stack(losses)

    def _mask_losses(
        self,
        pred_masks: Sequence[Tensor],
        targets: Sequence[Targets],
        matches: Matches,
        normaliser: Tensor,
        suffixes: Sequence[str],
    ) -> dict[str, Tensor]:
        assert self.mask_losses is not None
        truth = torch.cat([masks_of(t, pred_masks[0]) for t in targets])  # (N of the batch, H, W)
        found = {}
        for masks, query, target, suffix in zip(pred_masks, matches.query, matches.target, suffixes):
            losses = self.mask_losses(masks[matches.picture, query], truth, target, normaliser)
            found.update({f"loss_{name}{suffix}": value for name, value in losses.items()})
        return found

    def _normalisers(
        self, targets: Sequence[Targets], denoising: DenoisingBatch | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Divisors of the matching and of the denoising losses."""
        num_targets = float(sum(len(t) for t in targets))
        num_positives = 0.0 if denoising is None else float(denoising.num_positives)
        # filled in there: a copy from the host would wait for the device
        counts = torch.stack([torch.full((), count, device=device) for count in (num_targets, num_positives)])
        num_targets_mean, num_positives_mean = mean_over_processes(counts)
        return num_targets_mean, num_positives_mean


def mean_over_processes(counts: Tensor) -> Tensor:
    """Divisors of losses: float32 counts of all processes together, at least 1, by the number of processes.

    Bounded before they are divided, so that the gradient, which is averaged over processes, does not depend on how many
    share a batch. (The authors bound the quotient, which differs where processes outnumber targets.)
    """
    if comm.get_world_size() > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts.clamp(min=1) / comm.get_world_size()


def _layer_suffixes(num_layers: int) -> list[str]:
    return [*(f"_{i}" for i in range(num_layers - 1)), ""]


def _class_rows(targets: Sequence[Targets], num_classes: int) -> Tensor:
    """(N of the whole batch, K) bool: the tokens, or the class, of each target."""
    rows = [F.one_hot(t.labels, num_classes).bool() if t.positive_map is None else t.positive_map > 0 for t in targets]
    return torch.cat(rows)


def _check_positive_maps(targets: Sequence[Targets], num_columns: int) -> None:
    for index, target in enumerate(targets):
        if target.positive_map is not None and target.positive_map.shape[-1] != num_columns:
            raise ValueError(
                f"the positive map of picture {index} of the batch has {target.positive_map.shape[-1]} columns, but "
                f"the class logits have {num_columns}; build it with positive_map(prompt, {num_columns})"
            )
