"""Which evaluator scores a data set: the table that `evaluator_type` in a data set's metadata is looked up in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from grounding_dino.evaluation.coco_ap import CocoEvaluator
from grounding_dino.evaluation.described_objects import DescribedObjectsEvaluator
from grounding_dino.evaluation.gathering import description_prompt
from grounding_dino.evaluation.grefexp import GeneralizedRefExpEvaluator
from grounding_dino.evaluation.lvis_evaluator import LVISEvaluator
from grounding_dino.evaluation.phrase_grounding import PhraseGroundingEvaluator
from grounding_dino.evaluation.refexp import RefExpEvaluator
from grounding_dino.evaluation.report import ReportedEvaluator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    return CocoEvaluator(name, folder, tasks, cfg.TEST.MAX_DETECTIONS, plots=cfg.TEST.PLOTS_ON)


def _lvis(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return LVISEvaluator(name, folder, plots=cfg.TEST.PLOTS_ON)


def _refexp(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return RefExpEvaluator(name, output_dir=folder, prompt=description_prompt(cfg))


def _grefexp(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    threshold, prompt = cfg.TEST.EXPRESSION_THRESHOLD, description_prompt(cfg)
    return GeneralizedRefExpEvaluator(name, threshold, output_dir=folder, prompt=prompt)


def _flickr30k(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return PhraseGroundingEvaluator(name, output_dir=folder)


def _d3(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    prompt = description_prompt(cfg)
    return DescribedObjectsEvaluator(name, cfg.TEST.MAX_DETECTIONS, output_dir=folder, prompt=prompt)


# What a data set's metadata may name in `evaluator_type`, alone or in a list: (cfg, data set, folder) -> evaluator.
EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "coco": _coco,
    "lvis": _lvis,
    "refexp": _refexp,
    "grefexp": _grefexp,
    "flickr30k": _flickr30k,
    "d3": _d3,
}


def build_evaluator(cfg: CfgNode, dataset_name: str) -> ReportedEvaluator:
    """What the data set's `evaluator_type` asks for ("coco" where it says nothing), with protocol and json.

    Raises:
        ValueError: an unknown type.
    """
    folder = f"{cfg.OUTPUT_DIR}/inference/{dataset_name}"
    evaluators = {kind: EVALUATORS[kind](cfg, dataset_name, folder) for kind in evaluator_kinds(dataset_name)}
    return ReportedEvaluator(cfg, dataset_name, evaluators, folder)


def evaluator_kinds(dataset_name: str) -> list[str]:
    """The names in EVALUATORS that a data set's metadata asks for.

    Raises:
        ValueError: an unknown one, or one twice.
    """
    wanted = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [kind for kind in kinds if kind not in EVALUATORS]
    if unknown or not kinds:
        raise ValueError(f"data set {dataset_name!r} asks for evaluator {wanted!r}; known are {sorted(EVALUATORS)}")
    repeated = [kind for kind, number in Counter(kinds).items() if number > 1]
    if repeated:
        raise ValueError(f"data set {dataset_name!r} asks for evaluator {repeated[0]!r} more than once; name it once")
    return kinds
