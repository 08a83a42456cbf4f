"""Schedules given in epochs, which mean iterations once it is known how many pictures an epoch has."""

from __future__ import annotations

import logging
import math

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def in_iterations(cfg: CfgNode, pictures: int) -> CfgNode:
    """`cfg` with SOLVER.EPOCHS put into MAX_ITER, STEPS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD; it is not changed.

    An epoch takes ceil(`pictures` / SOLVER.IMS_PER_BATCH) iterations. Where SOLVER.EPOCHS.MAX is 0, `cfg` itself.

    Raises:
        ValueError: a negative number, or a step after the end.
    """
    epochs = cfg.SOLVER.EPOCHS
    numbers = (epochs.MAX, epochs.CHECKPOINT_PERIOD, epochs.EVAL_PERIOD, *epochs.STEPS)
    if min(numbers) < 0 or (epochs.MAX and any(step >= epochs.MAX for step in epochs.STEPS)):
        raise ValueError(
            f"SOLVER.EPOCHS is MAX {epochs.MAX}, STEPS {list(epochs.STEPS)}, CHECKPOINT_PERIOD "
            f"{epochs.CHECKPOINT_PERIOD}, EVAL_PERIOD {epochs.EVAL_PERIOD}: no number may be negative, and steps have "
            "to be smaller than MAX"
        )
    if not epochs.MAX:
        return cfg
    epoch = math.ceil(pictures / cfg.SOLVER.IMS_PER_BATCH)
    changed = cfg.clone()
    changed.defrost()
    changed.SOLVER.MAX_ITER = round(epochs.MAX * epoch)
    changed.SOLVER.STEPS = tuple(round(step * epoch) for step in epochs.STEPS)
    if epochs.CHECKPOINT_PERIOD:
        changed.SOLVER.CHECKPOINT_PERIOD = max(1, round(epochs.CHECKPOINT_PERIOD * epoch))
    if epochs.EVAL_PERIOD:
        changed.TEST.EVAL_PERIOD = max(1, round(epochs.EVAL_PERIOD * epoch))
    changed.freeze()
    logger.info(
        "%s epochs of %d iterations (%d pictures): SOLVER.MAX_ITER %d, STEPS %s",
        *(epochs.MAX, epoch, pictures, changed.SOLVER.MAX_ITER, changed.SOLVER.STEPS),
    )
    return changed
