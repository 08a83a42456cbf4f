"""Which evaluator scores a data set: the table that `evaluator_type` in a data set's metadata is looked up in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grounding_dino.evaluation.coco_ap import CocoEvaluator
from grounding_dino.evaluation.described_objects import LENGTHS, DescribedObjectsEvaluator
from grounding_dino.evaluation.gathering import description_prompt
from grounding_dino.evaluation.grefexp import GeneralizedRefExpEvaluator
from grounding_dino.evaluation.lvis_ap import FREQUENCIES
from grounding_dino.evaluation.lvis_evaluator import LVISEvaluator
from grounding_dino.evaluation.panoptic_evaluator import PanopticEvaluator, panoptic_truth_of
from grounding_dino.evaluation.panoptic_quality import MEASURES
from grounding_dino.evaluation.phrase_grounding import PhraseGroundingEvaluator
from grounding_dino.evaluation.precision import METRICS
from grounding_dino.evaluation.refexp import RefExpEvaluator
from grounding_dino.evaluation.report import ReportedEvaluator
from grounding_dino.evaluation.semantic_evaluator import SemanticEvaluator, semantic_truth_of

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return CocoEvaluator(name, folder, _tasks(cfg), cfg.TEST.MAX_DETECTIONS, plots=cfg.TEST.PLOTS_ON)


def _lvis(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return LVISEvaluator(name, folder, _tasks(cfg), plots=cfg.TEST.PLOTS_ON)


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


def _panoptic(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    settings = (
        f"of queries with a score from {cfg.TEST.OBJECT_MASK_THRESHOLD} (TEST.OBJECT_MASK_THRESHOLD) that keep "
        f"{cfg.TEST.OVERLAP_THRESHOLD:.0%} of their mask (TEST.OVERLAP_THRESHOLD)"
    )
    return PanopticEvaluator(name, folder, cfg.TEST.PANOPTIC_FILES_ON, settings=settings)


def _semantic(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return SemanticEvaluator(name)


PANOPTIC = "coco_panoptic_seg"  # panoptic sets name kinds for the model's other results beside it
SEMANTIC = "sem_seg"

# What a data set's metadata may name in `evaluator_type`, alone or in a list: (cfg, data set, folder) -> evaluator.
EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "coco": _coco,
    "lvis": _lvis,
    "refexp": _refexp,
    "grefexp": _grefexp,
    "flickr30k": _flickr30k,
    "d3": _d3,
    PANOPTIC: _panoptic,
    SEMANTIC: _semantic,
}

_OF_TEXT = {"refexp", "grefexp", "flickr30k", "d3"}  # what is found hangs on words, which closed-set models do not read

# The part of a model's output that an evaluator needs, with the key that a model with masks gives it by.
_INSTANCES = ("instances", "TEST.INSTANCE_ON")
_OUTPUTS = {PANOPTIC: ("panoptic_seg", "TEST.PANOPTIC_ON"), SEMANTIC: ("sem_seg", "TEST.SEMANTIC_ON")}

_RANKS = ("1", "5", "10")
_LVIS_METRICS = (*METRICS, *(f"AP{letter}" for letter in FREQUENCIES))
# What each of EVALUATORS can give, by task, beside metrics of single categories or types ("AP-cat").
TASKS: dict[str, Callable[[CfgNode], dict[str, Sequence[str]]]] = {
    "coco": lambda cfg: dict.fromkeys(_tasks(cfg), METRICS),
    "lvis": lambda cfg: dict.fromkeys([f"{t}{kind}" for t in _tasks(cfg) for kind in ("", "_fixed")], _LVIS_METRICS),
    "refexp": lambda cfg: {"refexp": [*(f"P@{rank}" for rank in _RANKS), "mIoU"]},
    "grefexp": lambda cfg: {"grefexp": ["P@(F1=1)", "N_acc", "T_acc"]},
    "flickr30k": lambda cfg: {"flickr30k": [f"{prefix}R@{rank}" for prefix in ("", "merged_") for rank in _RANKS]},
    "d3": lambda cfg: {"d3": [*METRICS, *(f"AP_{part}" for part in ("presence", "absence", *LENGTHS))]},
    PANOPTIC: lambda cfg: {"panoptic_seg": [f"{measure}{part}" for part in ("", "_th", "_st") for measure in MEASURES]},
    SEMANTIC: lambda cfg: {"sem_seg": ["mIoU", "fwIoU", "mACC", "pACC", "mBoundaryIoU"]},
}


def metric_names(cfg: CfgNode, dataset_name: str) -> list[str] | None:
    """The metrics, as "task/metric", that a data set's evaluators can give, without those of single categories.

    None where one of them is not of this project, so that it is not known.
    """
    kinds = kinds_of_run(cfg, dataset_name)
    if not set(kinds) <= set(TASKS):
        return None
    return [f"{task}/{metric}" for kind in kinds for task, metrics in TASKS[kind](cfg).items() for metric in metrics]


def build_evaluator(cfg: CfgNode, dataset_name: str) -> ReportedEvaluator:
    """What the data set's `evaluator_type` asks for ("coco" where it says nothing), with protocol and json.

    Raises:
        ValueError: as :func:`kinds_of_run`.
    """
    folder = f"{cfg.OUTPUT_DIR}/inference/{dataset_name}"
    evaluators = {kind: EVALUATORS[kind](cfg, dataset_name, folder) for kind in kinds_of_run(cfg, dataset_name)}
    return ReportedEvaluator(cfg, dataset_name, evaluators, folder)


def kinds_of_run(cfg: CfgNode, dataset_name: str) -> list[str]:
    """The kinds that a data set asks for and the model of `cfg` gives results for, as TEST.*_ON say.

    What a data set is for, panoptic quality or else the first kind, has to be among them; other kinds are left out,
    said in the log.

    Raises:
        ValueError: the model does not give what that kind needs, or reads no text where the set asks with words, or as
            :func:`evaluator_kinds`.
    """
    kinds = evaluator_kinds(dataset_name)
    if not cfg.MODEL.TEXT_ENCODER.NAME and _OF_TEXT & set(kinds):
        raise ValueError(
            f"{dataset_name!r} asks with words ({', '.join(sorted(_OF_TEXT & set(kinds)))}), but the model finds fixed "
            "classes and reads no text (MODEL.TEXT_ENCODER.NAME is empty); name a data set of its classes"
        )
    lacking = {kind: key for kind in kinds if (key := _missing_key(cfg, kind))}
    main = PANOPTIC if PANOPTIC in kinds else kinds[0]
    if main in lacking:
        output, key = _OUTPUTS.get(main, _INSTANCES)
        raise ValueError(
            f"the evaluator {main!r} of {dataset_name!r} needs {output!r}, which the model does not give while "
            f"{lacking[main]} is False; evaluate a model that is trained for it (MODEL.MASK_ON True) with {key} "
            "True, or another data set"
        )
    for kind, key in lacking.items():
        logger.info("%s is not evaluated by %r, since %s is False", dataset_name, kind, key)
    return [kind for kind in kinds if kind not in lacking]


def check_evaluation(cfg: CfgNode, dataset_name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """See, without reading annotations, that a data set can be evaluated: a run ends at its start, not its end.

    Raises:
        ValueError: the truth of an evaluator is not named, or as :func:`kinds_of_run`.
        FileNotFoundError: a file of it is not there.
    """
    kinds = kinds_of_run(cfg, dataset_name)
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if {"coco", "lvis"} & set(kinds) and json_file and not PathManager.exists(json_file):
        raise FileNotFoundError(f"there is no {json_file!r}, the instances of {dataset_name!r}")
    if PANOPTIC in kinds:
        panoptic_truth_of(dataset_name)
    if SEMANTIC in kinds:
        semantic_truth_of(dataset_name, records)


def _missing_key(cfg: CfgNode, kind: str) -> str:
    """The key that would have to be True for the model to give what an evaluator needs; "" where it does."""
    if not cfg.MODEL.MASK_ON:  # such models give Instances whatever TEST says, and nothing else
        return "MODEL.MASK_ON" if kind in _OUTPUTS else ""
    _, key = _OUTPUTS.get(kind, _INSTANCES)
    return "" if cfg.TEST[key.removeprefix("TEST.")] else key


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
