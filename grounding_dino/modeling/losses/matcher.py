"""One-to-one matching of queries and targets (Carion et al., "End-to-end object detection", section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from grounding_dino.layers.box_ops import as_float32_at_least, box_cxcywh_to_xyxy, generalized_box_iou
from grounding_dino.layers.transfer import to_device
from grounding_dino.modeling.losses.mask_losses import MaskCosts, masks_of
from grounding_dino.structures import Targets

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

_LOG_EPS = 1e-12  # inside the logarithms of the class cost, as in the published implementations
_MAX_CHUNK = 2**22  # elements of a cost matrix computed at once: bounds the temporaries of dense pictures
_MIN_FOR_THREADS = 2**18  # costs (some milliseconds of work) above which threads are started
_MAX_THREADS = 4  # of each process: several may share a machine, with workers that load pictures


@dataclass(frozen=True)
class Matches:
    """M pairs of a query and a target in each of S prediction stages.

    `target` counts through the batch: the targets of picture 0, then those of picture 1, and so on.
    """

    picture: Tensor  # (M,) int64
    query: Tensor  # (S, M) int64
    target: Tensor  # (S, M) int64


class HungarianMatcher(nn.Module):
    """Finds for each picture the one-to-one assignment of queries to targets with the least total cost.

    The cost of a pair is a weighted sum of a class cost, the L1 distance of the boxes (cxcywh in [0, 1]) and their
    negative generalised IoU, and, for models with masks, of mask costs. All stages and pictures are computed together
    and copied to the host once.
    """

    @configurable
    def __init__(
        self,
        *,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        mask_costs: MaskCosts | None = None,
    ) -> None:
        """Weights of the three costs; `focal_alpha` and `focal_gamma` as in the class loss; None: no masks."""
        super().__init__()
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.mask_costs = mask_costs

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.MATCHER and the focal parameters of MODEL.LOSS."""
        matcher = cfg.MODEL.MATCHER
        masks = MaskCosts(matcher.MASK_WEIGHT, matcher.DICE_WEIGHT, cfg.MODEL.LOSS.NUM_POINTS)
        return {
            "mask_costs": masks if cfg.MODEL.MASK_ON else None,
            "class_weight": cfg.MODEL.MATCHER.CLASS_WEIGHT,
            "l1_weight": cfg.MODEL.MATCHER.L1_WEIGHT,
            "giou_weight": cfg.MODEL.MATCHER.GIOU_WEIGHT,
            "focal_alpha": cfg.MODEL.LOSS.FOCAL_ALPHA,
            "focal_gamma": cfg.MODEL.LOSS.FOCAL_GAMMA,
        }

    @torch.no_grad()
    def forward(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: Sequence[Targets],
        valid: Tensor | None = None,
        pred_masks: Sequence[Tensor] | None = None,
    ) -> Matches:
        """Match all stages of a batch.

        Args:
            pred_logits: (S, B, Q, K) of S prediction stages.
            pred_boxes: (S, B, Q, 4) cxcywh in [0, 1].
            targets: of the B pictures; with a `positive_map` the classes are text tokens, without it `labels`.
            valid: (B, K) bool, False on padded text tokens.
            pred_masks: S x (B, Q, h, w) logits; None where masks do not count.

        Raises:
            FloatingPointError: a cost is NaN or infinite.
        """
        counts = [len(t) for t in targets]
        stages, _, num_queries, _ = pred_logits.shape
        matched = sum(min(count, num_queries) for count in counts)
        query = np.zeros((stages, matched), dtype=np.int64)
        target = np.zeros((stages, matched), dtype=np.int64)
        picture = np.zeros(matched, dtype=np.int64)
        if matched:
            costs = self.costs(pred_logits, pred_boxes, targets, valid, pred_masks).cpu().numpy()
            of_pictures = [costs[:, index, :, :count] for index, count in enumerate(counts)]
            for index, cost in enumerate(of_pictures):
                _check_finite(cost, index)
            pairs = _assign([cost[stage] for cost in of_pictures for stage in range(stages)])
            first_target, start = 0, 0
            for index, count in enumerate(counts):
                end = start + min(count, num_queries)
                picture[start:end] = index
                for stage in range(stages):
                    query[stage, start:end], columns = pairs[index * stages + stage]
                    target[stage, start:end] = columns + first_target
                first_target, start = first_target + count, end
        found = to_device(torch.from_numpy(np.concatenate((picture[None], query, target))), pred_logits.device)
        return Matches(found[0], *found[1:].chunk(2))

    @torch.no_grad()
    def costs(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: Sequence[Targets],
        valid: Tensor | None = None,
        pred_masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(S, B, Q, N) matching costs, N the largest number of targets; columns beyond a picture's own mean nothing."""
        with torch.autocast(pred_logits.device.type, enabled=False):  # matrix products would run in half precision
            gain, offset = self._class_terms(pred_logits, valid, by_token=_has_positive_maps(targets))
            pred_boxes = as_float32_at_least(pred_boxes)
            pred_corners = box_cxcywh_to_xyxy(pred_boxes)
            gt_boxes = _pad([t.boxes for t in targets]).to(pred_boxes.dtype)  # (B, N, 4)
            gt_classes = _pad([t.labels if t.positive_map is None else t.positive_map for t in targets])
            step = max(1, _MAX_CHUNK // pred_boxes[..., 0].numel())
            chunks = []
            for boxes, classes in zip(gt_boxes.split(step, dim=1), gt_classes.split(step, dim=1), strict=True):
                cost = self.class_weight * (_class_gain(gain, classes) + offset)
                cost += self.l1_weight * torch.cdist(pred_boxes, boxes[None].expand(len(pred_boxes), -1, -1, -1), p=1)
                cost -= self.giou_weight * generalized_box_iou(pred_corners, box_cxcywh_to_xyxy(boxes))
                chunks.append(cost)
            costs = torch.cat(chunks, dim=-1)
            if self.mask_costs is not None and pred_masks is not None:
                for index, target in enumerate(targets):
                    if len(target):
                        masks = masks_of(target, costs)
                        costs[:, index, :, : len(target)] += self.mask_costs([m[index] for m in pred_masks], masks)
            return costs

    def _class_terms(self, logits: Tensor, valid: Tensor | None, by_token: bool) -> tuple[Tensor, Tensor]:
        """(S, B, Q, K) cost of calling a class present instead of absent, and (S, B, Q, 1) what a query pays anyway.

        Over text tokens the cost is that of the whole row (present ones and absent ones); over classes it is that of
        the target's class alone.
        """
        yes = as_float32_at_least(logits).sigmoid()
        no = 1 - yes
        present = yes.add(_LOG_EPS).log_().mul_(no.pow(self.focal_gamma)).mul_(-self.focal_alpha)
        absent = no.add_(_LOG_EPS).log_().mul_(yes.pow_(self.focal_gamma)).mul_(self.focal_alpha - 1)
        if valid is not None:
            padded = ~valid[:, None]  # (B, 1, K)
            present, absent = present.masked_fill_(padded, 0.0), absent.masked_fill_(padded, 0.0)
        row = absent.sum(dim=-1, keepdim=True)
        return present.sub_(absent), row if by_token else torch.zeros_like(row)


def _class_gain(gain: Tensor, classes: Tensor) -> Tensor:
    """(S, B, Q, K) and labels (B, N) or positive maps (B, N, K) -> (S, B, Q, N)."""
    if classes.dim() == 3:
        return gain @ classes.to(gain.dtype).mT
    return gain.gather(-1, classes[None, :, None].expand(*gain.shape[:3], -1))


def _has_positive_maps(targets: Sequence[Targets]) -> bool:
    return targets[0].positive_map is not None


def _pad(tensors: list[Tensor]) -> Tensor:
    return pad_sequence(tensors, batch_first=True)


def _assign(costs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the assignment of least cost in each matrix; in threads where they are large.

    scipy lets go of Python's lock, and a GPU has nothing to do meanwhile.
    """
    from scipy.optimize import linear_sum_assignment  # on use: training alone needs it

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    if threads == 1 or sum(cost.size for cost in costs) < _MIN_FOR_THREADS:
        return [linear_sum_assignment(cost) for cost in costs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(linear_sum_assignment, costs))


def _check_finite(cost: np.ndarray, picture: int) -> None:
    if not np.isfinite(cost).all():
        stage = int(np.argmin(np.isfinite(cost).all(axis=(1, 2))))
        raise FloatingPointError(
            f"the matching costs of picture {picture} of the batch are NaN or infinite at prediction stage {stage}: "
            "the predicted logits, boxes or masks, or the target boxes, are not finite; lower the learning rate, "
            "clip gradients, or train in float32"
        )
