"""Which evaluator scores a data set: the table that `evaluator_type` in a data set's metadata is looked up in."""

from __future__ import annotations

from collections.abc import Callable

from grounding_dino.evaluation.refexp import RefExpEvaluator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return COCOEvaluator(name, tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",), output_dir=folder)


def _refexp(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return RefExpEvaluator(name, output_dir=folder)


# What a data set's metadata may name in `evaluator_type`, alone or in a list: (cfg, data set, folder) -> evaluator.
EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {"coco": _coco, "refexp": _refexp}


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """What the data set's `evaluator_type` asks for ("coco" where it says nothing).

    Raises:
        ValueError: an unknown type.
    """
    folder = f"{cfg.OUTPUT_DIR}/inference/{dataset_name}"
    found = [EVALUATORS[kind](cfg, dataset_name, folder) for kind in evaluator_kinds(dataset_name)]
    return found[0] if len(found) == 1 else DatasetEvaluators(found)


def evaluator_kinds(dataset_name: str) -> list[str]:
    """The names in EVALUATORS that a data set's metadata asks for.

    Raises:
        ValueError: an unknown one.
    """
    wanted = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [kind for kind in kinds if kind not in EVALUATORS]
    if unknown or not kinds:
        raise ValueError(f"data set {dataset_name!r} asks for evaluator {wanted!r}; known are {sorted(EVALUATORS)}")
    return kinds
