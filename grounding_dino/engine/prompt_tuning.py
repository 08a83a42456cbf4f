"""What a training of prompt vectors (MODEL.DENSE_HEAD.PROMPT_VECTORS) needs of its data: always the same prompt."""

from __future__ import annotations

import logging

from grounding_dino.data.text_sampling import name_cost
from grounding_dino.data.text_settings import default_settings, rename, settings_by_dataset

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

logger = logging.getLogger(__name__)


def warn_of_changing_prompts(cfg: CfgNode) -> None:
    """Say which sets of DATASETS.TRAIN ask with other prompts from picture to picture.

    A vector is added to whatever token stands in its place, so it can learn something about that token only where all
    prompts are equal: all names of the set, in its order.
    """
    if not cfg.MODEL.DENSE_HEAD.PROMPT_VECTORS:
        return
    for dataset in cfg.DATASETS.TRAIN:
        reason = _why_prompts_change(cfg, dataset)
        if reason:
            logger.warning(
                "MODEL.DENSE_HEAD.PROMPT_VECTORS is %d, and a vector belongs to a place of the prompt, but prompts of "
                "%r change from picture to picture: %s",
                cfg.MODEL.DENSE_HEAD.PROMPT_VECTORS,
                dataset,
                reason,
            )


def _why_prompts_change(cfg: CfgNode, dataset: str) -> str:
    names = MetadataCatalog.get(dataset).get("thing_classes", None)
    if not names:
        return "it has captions or names of each picture's own"
    settings = settings_by_dataset(cfg).get(dataset) or default_settings(cfg)
    sampler = settings.sampler
    if sampler.num_negatives != -1:
        return f"INPUT.NUM_NEGATIVE_CATEGORIES is {sampler.num_negatives}; -1 names all classes"
    if sampler.shuffle:
        return "INPUT.SHUFFLE_CATEGORIES_ON is True; False keeps the order of the names"
    if sampler.split_names:
        return "INPUT.SPLIT_NAMES_ON is True; False writes a name as it is"
    tokens = sum(name_cost(name, sampler.tokenizer) for name in rename(names, settings.prompt_names))
    if tokens > sampler.budget:
        limit = cfg.MODEL.TEXT_ENCODER.MAX_TOKENS
        return f"its {len(names)} names do not fit into one (MODEL.TEXT_ENCODER.MAX_TOKENS is {limit})"
    return ""
