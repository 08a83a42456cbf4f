"""Options that no GLIP can have are told by key, value and remedy, before anything is built."""

from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.modeling.dense_head.options import check_options

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

HEAD = "MODEL.DENSE_HEAD"


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("MODEL.EMBED_DIM", 0, "give a multiple of MODEL.DENSE_HEAD.NUM_GROUPS"),
        (f"{HEAD}.NUM_GROUPS", 7, "divide the channels, MODEL.EMBED_DIM 32; give a divisor of that"),
        (f"{HEAD}.NUM_GROUPS", 0, "give a divisor of that"),
        (f"{HEAD}.IN_FEATURES", [], "name them, finest first"),
        (f"{HEAD}.NUM_BLOCKS", 0, "give 1 or more"),
        (f"{HEAD}.NUM_BLOCKS", -1, "give 1 or more"),
        (f"{HEAD}.PROMPT_VECTORS", -4, "give as many as a prompt has tokens, or 0 for none"),
        (f"{HEAD}.ANCHOR_SCALE", 0.0, "give more than 0"),
        (f"{HEAD}.NUM_CANDIDATES", 0, "give 1 or more"),
        (f"{HEAD}.TEXT_FUSION.NUM_HEADS", 3, "divide MODEL.DENSE_HEAD.TEXT_FUSION.EMBED_DIM 32; give a divisor"),
        (f"{HEAD}.TEXT_FUSION.NUM_HEADS", 0, "give a divisor"),
        (f"{HEAD}.TEXT_FUSION.DROPOUT", 2.0, "give 0 to less than 1"),
        (f"{HEAD}.TEXT_FUSION.DROP_PATH_RATE", 1.0, "give 0 to less than 1"),
        (f"{HEAD}.SCORE_THRESHOLD", 2.0, "give 0 to less than 1"),
        (f"{HEAD}.SCORE_THRESHOLD", float("nan"), "give 0 to less than 1"),
        (f"{HEAD}.PRE_NMS_TOPK", 0, "give 1 or more"),
        (f"{HEAD}.NMS_THRESHOLD", -1.0, "give 0 to 1"),
        ("TEST.DETECTIONS_PER_IMAGE", -1, "give 1 or more"),
        ("MODEL.TEXT_ENCODER.NAME", "", "set it to 'BertEncoder'"),
        ("MODEL.TEXT_ENCODER.PROJECTION_ON", True, "set it False"),
        ("MODEL.LOSS.CLASS", "cross_entropy", "set it to 'focal'"),
        ("MODEL.MASK_ON", True, "set it False"),
        ("TEST.PANOPTIC_ON", True, "set it False"),
        ("TEST.SEMANTIC_ON", True, "set it False"),
    ],
)
def test_what_no_glip_can_have(tiny_glip_cfg: CfgNode, key: str, value: Any, remedy: str) -> None:
    tiny_glip_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=".") as told:
        build_model(tiny_glip_cfg)
    assert str(told.value).startswith(f"{key} is {value!r}, but ") and remedy in str(told.value)


def test_the_ends_of_the_ranges(tiny_glip_cfg: CfgNode) -> None:
    check_options(tiny_glip_cfg)
    for opts in (
        [f"{HEAD}.SCORE_THRESHOLD", 0.0, f"{HEAD}.NMS_THRESHOLD", 1.0, f"{HEAD}.PRE_NMS_TOPK", 1],
        [f"{HEAD}.TEXT_FUSION.ENABLED_ON", False, f"{HEAD}.TEXT_FUSION.NUM_HEADS", 0],  # read by nobody
        [f"{HEAD}.TEXT_FUSION.DROPOUT", 0.0, "TEST.DETECTIONS_PER_IMAGE", 1, f"{HEAD}.NUM_CANDIDATES", 1],
    ):
        cfg = tiny_glip_cfg.clone()
        cfg.merge_from_list(opts)
        check_options(cfg)


@pytest.mark.parametrize("names", [["stage4", "stage3"], ["stage3", "stage3"]])
def test_maps_are_named_once_and_finest_first(tiny_glip_cfg: CfgNode, names: list[str]) -> None:
    tiny_glip_cfg.merge_from_list([f"{HEAD}.IN_FEATURES", names])
    with pytest.raises(ValueError, match=r"IN_FEATURES is .'stage.', 'stage3'., .* the finest first"):
        build_model(tiny_glip_cfg)
