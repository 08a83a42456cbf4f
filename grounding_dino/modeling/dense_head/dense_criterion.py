"""The training losses of GLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grounding_dino.layers.box_ops import as_float32_at_least, box_cxcywh_to_xyxy, paired_generalized_box_iou
from grounding_dino.modeling.dense_head.anchors import decode_boxes
from grounding_dino.modeling.dense_head.atss import BACKGROUND, assign_places, centerness_of
from grounding_dino.modeling.losses.criterion import mean_over_processes
from grounding_dino.modeling.losses.functional import sigmoid_focal_loss
from grounding_dino.structures import DensePredictions, Targets

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn


class DenseCriterion(nn.Module):
    """Token-level focal loss of all places; generalised IoU and centerness of those that learn an object.

    Focal and centerness losses are divided by the number of such places in the batch; overlaps are weighted by
    centerness and divided by its sum. Both are averaged over processes.
    """

    @configurable
    def __init__(
        self,
        *,
        class_weight: float = 1.0,
        giou_weight: float = 2.0,
        centerness_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        num_candidates: int = 9,
    ) -> None:
        super().__init__()
        self.weights = {"class": class_weight, "giou": giou_weight, "centerness": centerness_weight}
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.num_candidates = num_candidates

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.LOSS and MODEL.DENSE_HEAD.NUM_CANDIDATES."""
        loss = cfg.MODEL.LOSS
        return {
            "class_weight": loss.CLASS_WEIGHT,
            "giou_weight": loss.GIOU_WEIGHT,
            "centerness_weight": loss.CENTERNESS_WEIGHT,
            "focal_alpha": loss.FOCAL_ALPHA,
            "focal_gamma": loss.FOCAL_GAMMA,
            "num_candidates": cfg.MODEL.DENSE_HEAD.NUM_CANDIDATES,
        }

    def forward(
        self,
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        targets: Sequence[Targets],
        frames: Sequence[tuple[int, int]],
        text_padding_mask: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted scalars `loss_class`, `loss_giou`, `loss_centerness`.

        Args:
            anchors: of each level (A_l, 4) cxcywh in pixels.
            targets: of the B pictures, with positive maps of as many columns as the logits; possibly without objects.
            frames: (h, w) pixels that each picture's boxes are relative to.
            text_padding_mask: (B, T) bool, True on padded tokens.

        Raises:
            FloatingPointError: the predictions are not finite.
        """
        with torch.autocast(text_padding_mask.device.type, enabled=False):
            logits, deltas, centerness = (
                as_float32_at_least(torch.cat(part, dim=1))
                for part in (predictions.token_logits, predictions.box_deltas, predictions.centerness)
            )  # (B, A, T), (B, A, 4), (B, A)
            _check_finite(logits, deltas, centerness, text_padding_mask)
            boxes = [_in_pixels(target.boxes, frame) for target, frame in zip(targets, frames)]
            assigned = torch.stack([assign_places(anchors, each, self.num_candidates) for each in boxes])  # (B, A)
            picture, place = (assigned != BACKGROUND).nonzero(as_tuple=True)
            objects = _counted_through(assigned, targets)[picture, place]
            places = torch.cat(list(anchors))[place]
            gt_boxes = torch.cat(boxes)[objects]  # (P, 4)
            gt_centerness = centerness_of(places[:, :2], gt_boxes)
            total_centerness = gt_centerness.sum().float()
            counts = torch.stack((torch.full_like(total_centerness, len(place)), total_centerness))
            num_places, centerness_sum = mean_over_processes(counts).unbind()
            gt_tokens = torch.zeros_like(logits, dtype=torch.bool)
            gt_tokens[picture, place] = torch.cat([_token_rows(target) for target in targets])[objects]
            focal = sigmoid_focal_loss(
                logits, gt_tokens, ~text_padding_mask[:, None], self.focal_alpha, self.focal_gamma
            )
            giou = paired_generalized_box_iou(decode_boxes(deltas[picture, place], places), gt_boxes)
            central = F.binary_cross_entropy_with_logits(centerness[picture, place], gt_centerness, reduction="sum")
            return {
                "loss_class": focal.sum() * (self.weights["class"] / num_places),
                "loss_giou": ((1 - giou) * gt_centerness).sum() * (self.weights["giou"] / centerness_sum),
                "loss_centerness": central * (self.weights["centerness"] / num_places),
            }


def _token_rows(target: Targets) -> Tensor:
    """(N, T) bool: the tokens of each object."""
    assert target.positive_map is not None
    return target.positive_map > 0


def _in_pixels(boxes: Tensor, frame: tuple[int, int]) -> Tensor:
    """cxcywh in [0, 1] -> XYXY."""
    height, width = frame
    return box_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])


def _counted_through(assigned: Tensor, targets: Sequence[Targets]) -> Tensor:
    """Objects (B, A) of each picture -> objects of the batch."""
    counts = torch.tensor([0, *(len(target) for target in targets[:-1])], device=assigned.device)
    return assigned + counts.cumsum(0)[:, None]


def _check_finite(logits: Tensor, deltas: Tensor, centerness: Tensor, text_padding_mask: Tensor) -> None:
    valid = (logits.isfinite() | text_padding_mask[:, None]).all()
    if not (valid & deltas.isfinite().all() & centerness.isfinite().all()):  # one answer, as each waits for a GPU
        raise FloatingPointError(
            "the model predicts scores, boxes or centerness that are NaN or infinite; lower SOLVER.BASE_LR, or look "
            "for such values in MODEL.WEIGHTS"
        )
