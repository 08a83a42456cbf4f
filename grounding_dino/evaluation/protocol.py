"""Under which conditions numbers came about: what an evaluation prints above them and writes beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from grounding_dino.text.prompt_builder import PromptBuilder

from detectron2.config import CfgNode
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_SHOWN = 300  # characters of a value in the log; the json has all


def common_protocol(cfg: CfgNode, num_pictures: int, limited: str = "picture") -> dict[str, str]:
    """What holds for every evaluator: weights, pictures and their size, detections (of each `limited`), precision."""
    processes = comm.get_world_size()
    size, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    protocol = {
        "weights": _weights(cfg),
        "pictures": f"{num_pictures}, on {processes} process{'es' if processes > 1 else ''}",
        "input size": f"shorter side {size}, longer at most {longest} pixels" if size else "as the pictures are",
        "detections": f"the {limit} best of a {limited} (TEST.DETECTIONS_PER_IMAGE), {_kept(cfg, limited)}",
        "precision": cfg.TEST.PRECISION,
    }
    if cfg.MODEL.META_ARCHITECTURE == "GLIP":
        protocol["centerness"] = "detections are ranked by the root of the score of their tokens times the centerness"
    return protocol


def prompt_protocol(cfg: CfgNode, text: str | Sequence[str]) -> dict[str, str]:
    """The prompt as the model gets it, a caption or names, and how a list too long for one prompt was split: at "|".

    Warns where MODEL.TEXT_ENCODER.CACHE_SIZE is too small for all prompts, which then run BERT for every picture.
    """
    builder, cache_size = PromptBuilder.from_config(cfg), cfg.MODEL.TEXT_ENCODER.CACHE_SIZE
    if isinstance(text, str):
        caption = builder.of_caption(text)
        return {"prompt": caption.caption, "names": f"a caption of {len(caption)} tokens"}
    limit = cfg.TEST.CATEGORIES_PER_PROMPT
    prompts = builder.of_categories(text, limit)
    names, tokens = len(text), sum(len(prompt) for prompt in prompts)
    written = " | ".join(prompt.caption for prompt in prompts)
    parts = f"{len(prompts)} prompts" if len(prompts) > 1 else "1 prompt"
    protocol = {
        "prompt": written,
        "names": f"{names} name{'s' if names > 1 else ''}, {tokens} tokens, {parts} of at most "
        + (f"{limit} names and " if limit else "")
        + f"{builder.max_tokens} tokens",
    }
    if len(prompts) == 1:
        return protocol
    protocol["merging"] = (
        f"the image backbone runs once a picture; each prompt gives its {cfg.TEST.DETECTIONS_PER_IMAGE} best "
        "(box, name) pairs, and the best of all prompts are the picture's detections"
    )
    fits = len(prompts) < cache_size  # one entry is for the padding
    protocol["text features"] = "computed once" if fits else "computed for every picture anew"
    if not fits:
        logger.warning(
            "MODEL.TEXT_ENCODER.CACHE_SIZE %d does not hold the %d prompts of this list: their text runs through BERT "
            "for every picture; set it to %d or more",
            *(cache_size, len(prompts), len(prompts) + 1),
        )
    return protocol


def format_protocol(protocol: Mapping[str, str]) -> str:
    """One aligned line an entry; long values are shortened in the middle."""
    width = max(len(key) for key in protocol)
    return "\n".join(f"  {key:<{width}}  {_shortened(value)}" for key, value in protocol.items())


def _kept(cfg: CfgNode, limited: str) -> str:
    """What detections have to be, beside the best; expressions and phrases are answered whatever the score."""
    if cfg.MODEL.META_ARCHITECTURE != "GLIP":
        return "of any score"
    head = cfg.MODEL.DENSE_HEAD
    least = f"before centerness over {head.SCORE_THRESHOLD} (SCORE_THRESHOLD)" if limited == "picture" else "any"
    return (
        f"score {least}, of the best {head.PRE_NMS_TOPK} of a level (PRE_NMS_TOPK), NMS at IoU {head.NMS_THRESHOLD} "
        "(NMS_THRESHOLD of MODEL.DENSE_HEAD)"
    )


def _weights(cfg: CfgNode) -> str:
    adapter = f" with the adapter {cfg.MODEL.LORA.WEIGHTS}" if cfg.MODEL.LORA.WEIGHTS else ""
    return (cfg.MODEL.WEIGHTS or "as the model was given, from no file that the configuration names") + adapter


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]} ({len(text)} characters)"
