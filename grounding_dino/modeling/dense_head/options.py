"""What the options of a GLIP may be: told before a model is built of them, in words that name the key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

Fault = tuple[str, Any, str]  # key, value, why not and what instead


def check_options(cfg: CfgNode) -> None:
    """See that sizes, shares and thresholds of MODEL and TEST are such that a GLIP can have them.

    Raises:
        ValueError: they are not; the message has a key, its value and the remedy.
    """
    for key, value, remedy in (*_of_other_models(cfg), *_sizes(cfg), *_choice_of_detections(cfg)):
        raise ValueError(f"{key} is {value!r}, but {remedy}")


def _of_other_models(cfg: CfgNode) -> Iterator[Fault]:
    """What other models have, and would be ignored here or end in shapes that do not fit."""
    text, loss = cfg.MODEL.TEXT_ENCODER, cfg.MODEL.LOSS.CLASS
    if not text.NAME:
        yield "MODEL.TEXT_ENCODER.NAME", text.NAME, "a GLIP finds what a text names; set it to 'BertEncoder'"
    if text.PROJECTION_ON:
        yield "MODEL.TEXT_ENCODER.PROJECTION_ON", True, "the tower of a GLIP reads BERT's own features; set it False"
    if loss != "focal":
        yield "MODEL.LOSS.CLASS", loss, "the tokens of a GLIP are decided one by one; set it to 'focal'"
    for key, value in (
        ("MODEL.MASK_ON", cfg.MODEL.MASK_ON),
        ("TEST.PANOPTIC_ON", cfg.TEST.PANOPTIC_ON),
        ("TEST.SEMANTIC_ON", cfg.TEST.SEMANTIC_ON),
    ):
        if value:
            yield key, value, "a GLIP finds boxes, without masks; set it False"


def _sizes(cfg: CfgNode) -> Iterator[Fault]:
    """Of the pyramid, the tower and the anchors."""
    head, dim, place = cfg.MODEL.DENSE_HEAD, cfg.MODEL.EMBED_DIM, "MODEL.DENSE_HEAD"
    if dim < 1:
        yield "MODEL.EMBED_DIM", dim, "features need channels; give a multiple of MODEL.DENSE_HEAD.NUM_GROUPS"
    if head.NUM_GROUPS < 1 or dim % head.NUM_GROUPS:
        remedy = f"it has to divide the channels, MODEL.EMBED_DIM {dim}; give a divisor of that"
        yield f"{place}.NUM_GROUPS", head.NUM_GROUPS, remedy
    if not head.IN_FEATURES:
        yield f"{place}.IN_FEATURES", [], "the pyramid is built of the backbone's maps; name them, finest first"
    if head.NUM_BLOCKS < 1:
        yield f"{place}.NUM_BLOCKS", head.NUM_BLOCKS, "the tower needs a block; give 1 or more"
    if head.PROMPT_VECTORS < 0:
        remedy = "it counts the learned vectors; give as many as a prompt has tokens, or 0 for none"
        yield f"{place}.PROMPT_VECTORS", head.PROMPT_VECTORS, remedy
    if head.ANCHOR_SCALE <= 0:
        yield f"{place}.ANCHOR_SCALE", head.ANCHOR_SCALE, "anchors need a side; give more than 0, such as 8"
    if head.NUM_CANDIDATES < 1:
        yield f"{place}.NUM_CANDIDATES", head.NUM_CANDIDATES, "no place could learn an object; give 1 or more"
    if head.TEXT_FUSION.ENABLED_ON:
        yield from _fusion(head.TEXT_FUSION, f"{place}.TEXT_FUSION")


def _fusion(fusion: CfgNode, place: str) -> Iterator[Fault]:
    if fusion.NUM_HEADS < 1 or fusion.EMBED_DIM < 1 or fusion.EMBED_DIM % fusion.NUM_HEADS:
        remedy = f"it has to divide {place}.EMBED_DIM {fusion.EMBED_DIM}; give a divisor of that"
        yield f"{place}.NUM_HEADS", fusion.NUM_HEADS, remedy
    for name in ("DROPOUT", "DROP_PATH_RATE"):
        if not 0 <= fusion[name] < 1:
            yield f"{place}.{name}", fusion[name], "it is the share that is dropped; give 0 to less than 1"


def _choice_of_detections(cfg: CfgNode) -> Iterator[Fault]:
    """What would silently leave no detection, or any."""
    head, place = cfg.MODEL.DENSE_HEAD, "MODEL.DENSE_HEAD"
    if not 0 <= head.SCORE_THRESHOLD < 1:
        remedy = "scores are from 0 to 1; give 0 to less than 1, such as 0.05"
        yield f"{place}.SCORE_THRESHOLD", head.SCORE_THRESHOLD, remedy
    if not 0 <= head.NMS_THRESHOLD <= 1:
        remedy = "it is an overlap (IoU); give 0 to 1, such as 0.6; 1 suppresses nothing"
        yield f"{place}.NMS_THRESHOLD", head.NMS_THRESHOLD, remedy
    for key, value in (
        (f"{place}.PRE_NMS_TOPK", head.PRE_NMS_TOPK),
        ("TEST.DETECTIONS_PER_IMAGE", cfg.TEST.DETECTIONS_PER_IMAGE),
    ):
        if value < 1:
            yield key, value, "it counts what is kept; give 1 or more"
