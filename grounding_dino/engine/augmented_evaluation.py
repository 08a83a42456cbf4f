"""What `--eval-only` measures once more with test-time augmentation (TEST.AUG): semantic results, under "..._TTA"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grounding_dino.evaluation.build import SEMANTIC, evaluator_kinds
from grounding_dino.evaluation.report import ReportedEvaluator
from grounding_dino.evaluation.semantic_evaluator import SemanticEvaluator
from grounding_dino.modeling.test_time_augmentation import SemanticSegmentorWithTTA

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import nn

SUFFIX = "_TTA"  # of tasks, and of the folder of their files: Detectron2's
Test = Callable[[CfgNode, nn.Module, Sequence[DatasetEvaluator]], Mapping[str, Any]]


def check_augmentation(cfg: CfgNode) -> None:
    """See that TEST.AUG, if it is on, has something to do: semantic results of a data set with semantic truth.

    Raises:
        ValueError: it has not.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    if not (cfg.MODEL.MASK_ON and cfg.TEST.SEMANTIC_ON):
        key = "TEST.SEMANTIC_ON" if cfg.MODEL.MASK_ON else "MODEL.MASK_ON"
        raise ValueError(
            f"TEST.AUG.ENABLED is True, but test-time augmentation is for semantic results, which the model does not "
            f"give while {key} is False; set TEST.AUG.ENABLED False, or evaluate a semantic model with "
            "TEST.SEMANTIC_ON True"
        )
    if not _semantic_sets(cfg):
        raise ValueError(
            f"TEST.AUG.ENABLED is True, but none of DATASETS.TEST {list(cfg.DATASETS.TEST)} has semantic truth (the "
            f"evaluator {SEMANTIC!r}); set TEST.AUG.ENABLED False"
        )


def with_augmentation(cfg: CfgNode, model: nn.Module, test: Test, results: Mapping[str, Any]) -> dict[str, Any]:
    """`results` on DATASETS.TEST with "sem_seg_TTA" beside "sem_seg"; files go to `inference_TTA` of OUTPUT_DIR."""
    names = _semantic_sets(cfg)
    restricted = cfg.clone()
    restricted.defrost()
    restricted.DATASETS.TEST = tuple(names)
    restricted.freeze()
    options = cfg.TEST.AUG
    sizes = f"shorter side {', '.join(map(str, options.MIN_SIZES))}, longer at most {options.MAX_SIZE} pixels"
    settings = {
        "augmentation": f"mean over pictures with their {sizes}" + (", and over their mirror images" * options.FLIP)
    }
    evaluators = [
        ReportedEvaluator(
            cfg,
            name,
            {SEMANTIC: SemanticEvaluator(name, settings=settings)},
            f"{cfg.OUTPUT_DIR}/inference{SUFFIX}/{name}",
        )
        for name in names
    ]
    found = test(restricted, SemanticSegmentorWithTTA(cfg, model), evaluators)
    by_set = {names[0]: found} if len(names) == 1 else found
    added = {
        name: {f"{task}{SUFFIX}": metrics for task, metrics in tasks.items()} for name, tasks in by_set.items() if tasks
    }
    if len(cfg.DATASETS.TEST) == 1:
        return {**results, **added.get(names[0], {})}
    return {name: {**tasks, **added.get(name, {})} for name, tasks in results.items()}


def _semantic_sets(cfg: CfgNode) -> list[str]:
    return [name for name in cfg.DATASETS.TEST if SEMANTIC in evaluator_kinds(name)]
