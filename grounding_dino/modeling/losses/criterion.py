"""The training losses of the DINO family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.layers.box_ops import as_float32_at_least, box_cxcywh_to_xyxy, paired_generalized_box_iou
from grounding_dino.modeling.losses.functional import sigmoid_focal_loss
from grounding_dino.modeling.losses.matcher import HungarianMatcher, Matches
from grounding_dino.structures import DecoderOutput, DenoisingBatch, Predictions, Targets

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn


class SetCriterion(nn.Module):
    """Losses of every prediction stage: each decoder layer, the encoder's proposals, and the denoising queries.

    Matched queries learn their target's classes (or text tokens, where targets have a `positive_map`) and box, all
    others are background. Sums are divided by the number of targets in the batch, averaged over processes;
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
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        """`matcher` pairs queries and targets; the weights multiply the three losses; alpha and gamma: focal loss."""
        super().__init__()
        self.matcher = matcher
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.LOSS and MODEL.MATCHER."""
        return {
            "matcher": HungarianMatcher(cfg),
            "class_weight": cfg.MODEL.LOSS.CLASS_WEIGHT,
            "l1_weight": cfg.MODEL.LOSS.L1_WEIGHT,
            "giou_weight": cfg.MODEL.LOSS.GIOU_WEIGHT,
            "focal_alpha": cfg.MODEL.LOSS.FOCAL_ALPHA,
            "focal_gamma": cfg.MODEL.LOSS.FOCAL_GAMMA,
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
            `loss_class`, `loss_l1`, `loss_giou` of the last layer; with the suffix `_{layer}` of the earlier ones,
            `_encoder` of the proposals, `_denoising` and `_denoising_{layer}` of the denoising queries.

        Raises:
            ValueError: a positive map does not have one column per logit.
            FloatingPointError: from the matcher, on predictions that are not finite.
        """
        with torch.autocast(output.layers[0].pred_logits.device.type, enabled=False):
            logits, boxes = _stack(output.layers)
            _check_positive_maps(targets, logits.shape[-1])
            valid = None if text_padding_mask is None else ~text_padding_mask
            num_targets, num_positives = self._normalisers(targets, denoising, logits.device)
            suffixes = _layer_suffixes(len(output.layers))
            if output.encoder is None:
                losses = self._match_and_compare(logits, boxes, targets, valid, num_targets, suffixes)
            elif output.encoder.pred_logits.shape == logits.shape[1:]:
                logits, boxes = _stack([*output.layers, output.encoder])
                suffixes = [*suffixes, "_encoder"]
                losses = self._match_and_compare(logits, boxes, targets, valid, num_targets, suffixes)
            else:
                losses = self._match_and_compare(logits, boxes, targets, valid, num_targets, suffixes)
                stage = _stack([output.encoder])
                losses |= self._match_and_compare(*stage, targets, valid, num_targets, ["_encoder"])
            if denoising is not None:
                losses |= self._denoising_losses(output, targets, denoising, valid, num_positives)
            return losses

    def _match_and_compare(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Targets],
        valid: Tensor | None,
        normaliser: Tensor,
        suffixes: Sequence[str],
    ) -> dict[str, Tensor]:
        matches = self.matcher(logits, boxes, targets, valid)
        return self._compare(logits, boxes, targets, matches, valid, normaliser, suffixes)

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
            return {f"loss_{name}{suffix}": zero for suffix in suffixes for name in self.weights}
        if output.denoising is None:
            raise ValueError(
                f"{denoising.content.shape[1]} denoising queries were made but the decoder's output has no predictions "
                "for them; set DecoderOutput.denoising to the first queries of each layer"
            )
        logits, boxes = _stack(output.denoising)
        picture, slot = (denoising.target_index >= 0).nonzero(as_tuple=True)
        target = denoising.target_index[picture, slot]
        matches = Matches(picture, slot.expand(len(logits), -1), target.expand(len(logits), -1))
        return self._compare(logits, boxes, targets, matches, valid, normaliser, suffixes)

    def _compare(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Targets],
        matches: Matches,
        valid: Tensor | None,
        normaliser: Tensor,
        suffixes: Sequence[str],
    ) -> dict[str, Tensor]:
        """Losses of S stages, given (S, B, Q, K) logits, (S, B, Q, 4) boxes and which query learns which target."""
        stage = torch.arange(len(logits), device=logits.device)[:, None]
        matched = (stage, matches.picture, matches.query)  # broadcasts to (S, M)
        gt_classes = torch.zeros_like(logits, dtype=torch.bool)
        gt_classes[matched] = _class_rows(targets, logits.shape[-1])[matches.target]
        gt_boxes = torch.cat([t.boxes for t in targets]).to(boxes)[matches.target]  # (S, M, 4)
        pred_boxes = boxes[matched]

        valid = None if valid is None else valid[:, None]  # (B, 1, K)
        focal = sigmoid_focal_loss(logits, gt_classes, valid, self.focal_alpha, self.focal_gamma)
        l1 = F.l1_loss(pred_boxes, gt_boxes, reduction="none")
        giou = 1 - paired_generalized_box_iou(box_cxcywh_to_xyxy(pred_boxes), box_cxcywh_to_xyxy(gt_boxes))
        sums = {"class": focal.sum(dim=(1, 2, 3)), "l1": l1.sum(dim=(1, 2)), "giou": giou.sum(dim=1)}
        losses = {name: (value * (self.weights[name] / normaliser)).unbind() for name, value in sums.items()}
        return {f"loss_{name}{suffix}": losses[name][i] for i, suffix in enumerate(suffixes) for name in losses}

    def _normalisers(
        self, targets: Sequence[Targets], denoising: DenoisingBatch | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Divisors of the matching and of the denoising losses: counts of all processes, at least 1, by their number.

        Bounded before they are divided, so that the gradient, which is averaged over processes, does not depend on how
        many share a batch. (The authors bound the quotient, which differs where processes outnumber targets.)
        """
        num_targets = float(sum(len(t) for t in targets))
        num_positives = 0.0 if denoising is None else float(denoising.num_positives)
        counts = torch.tensor([num_targets, num_positives], device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(counts)
        num_targets_mean, num_positives_mean = (counts.clamp(min=1) / comm.get_world_size()).unbind()
        return num_targets_mean, num_positives_mean


def _layer_suffixes(num_layers: int) -> list[str]:
    return [*(f"_{i}" for i in range(num_layers - 1)), ""]


def _stack(stages: Sequence[Predictions]) -> tuple[Tensor, Tensor]:
    """(S, B, Q, K) logits and (S, B, Q, 4) boxes."""
    logits = torch.stack([p.pred_logits for p in stages])
    boxes = torch.stack([p.pred_boxes for p in stages])
    return as_float32_at_least(logits), as_float32_at_least(boxes)


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
