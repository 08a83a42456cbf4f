"""The weights that the parts of a model have when its training starts."""

from __future__ import annotations

import logging
from typing import Any

from grounding_dino.checkpoint.partial import load_backbone_weights

from detectron2.config import CfgNode
from torch import nn

logger = logging.getLogger(__name__)


def load_initial_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Fill backbone and text encoder as MODEL.BACKBONE.WEIGHTS, TIMM.PRETRAINED_ON and TEXT_ENCODER.WEIGHTS say.

    Nothing else reads these keys: building a model never does, so that one that is evaluated, resumed or loaded from a
    checkpoint of its own needs neither the files nor a network. Nothing is read either where MODEL.WEIGHTS hold the
    whole model: they must be empty, or may leave gaps (MODEL.WEIGHTS_IGNORE, MODEL.WARM_START_ON). A backbone's file
    is preferred to timm's weights.

    Raises:
        CheckpointError, FileNotFoundError, ValueError: a file is missing or does not fit.
        RuntimeError: timm's weights cannot be fetched.
    """
    options = cfg.MODEL
    parts: Any = model
    if options.WEIGHTS and not options.WEIGHTS_IGNORE and not options.WARM_START_ON:
        return
    if not options.WEIGHTS:
        _warn_of_random_parts(cfg)
    if options.BACKBONE.WEIGHTS:
        load_backbone_weights(parts.backbone, options.BACKBONE.WEIGHTS)
    elif options.BACKBONE.NAME == "TimmBackbone" and options.TIMM.PRETRAINED_ON:
        parts.backbone.load_pretrained()
    if options.TEXT_ENCODER.NAME and options.TEXT_ENCODER.WEIGHTS:
        parts.text_encoder.load_weights(options.TEXT_ENCODER.WEIGHTS)


def _warn_of_random_parts(cfg: CfgNode) -> None:
    """Without MODEL.WEIGHTS, say which of the parts that are published alone begin with random weights."""
    backbone = ["MODEL.BACKBONE.WEIGHTS"]
    if cfg.MODEL.BACKBONE.NAME == "TimmBackbone":
        backbone.append("MODEL.TIMM.PRETRAINED_ON")
    given = {
        " or ".join(backbone): cfg.MODEL.BACKBONE.WEIGHTS or (len(backbone) > 1 and cfg.MODEL.TIMM.PRETRAINED_ON),
        "MODEL.TEXT_ENCODER.WEIGHTS": cfg.MODEL.TEXT_ENCODER.WEIGHTS or not cfg.MODEL.TEXT_ENCODER.NAME,
    }
    for key, value in given.items():
        if not value:
            part = "text encoder" if "TEXT" in key else "backbone"
            logger.warning("the %s begins with random weights: no file is named (%s)", part, key)
