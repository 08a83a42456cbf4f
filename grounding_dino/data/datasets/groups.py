"""Names that stand for several data sets, such as the benchmark `odinw13`."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence

from grounding_dino.data.datasets.coco_cleaning import is_number
from grounding_dino.data.datasets.register_odinw import PUBLISHED_SPLIT, SPLITS, dataset_name, odinw

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog


@functools.cache
def dataset_groups() -> dict[str, tuple[str, ...]]:
    """Group name -> names of its data sets.

    `odinw13` and `odinw35` are the split that published numbers are of (val), with plain class names as prompts;
    `_mm`, `_gdino` and `_glip` appended take the captions that the family was evaluated with, where there are any.
    A split can be appended to each: `odinw13_train`, `odinw35_mm_test`, `odinw13_train_3shot`.
    """
    groups = {}
    for group, members in odinw()["groups"].items():
        for split in ("", *SPLITS):
            names = tuple(dataset_name(member, split or PUBLISHED_SPLIT) for member in members)
            groups[f"{group}_{split}" if split else group] = names
    return groups


def expand_groups(names: Sequence[str]) -> list[str]:
    """Data set names, with each group replaced by its members; other names stay, whether known or not."""
    return [member for name in names for member in dataset_groups().get(name, (name,))]


def expand_config(cfg: CfgNode) -> None:
    """Replace groups in DATASETS.TRAIN, DATASETS.TEST and TEST.RETAINED, in place.

    A weight of a group in DATASETS.WEIGHTS is shared evenly by its members; a ratio in DATASETS.RATIOS is that of each.
    Numbers that do not fit stay, to be refused where sets are mixed.
    """
    sizes = [len(expand_groups([name])) for name in cfg.DATASETS.TRAIN]
    if len(cfg.DATASETS.WEIGHTS) == len(sizes) and all(map(is_number, cfg.DATASETS.WEIGHTS)):
        cfg.DATASETS.WEIGHTS = [weight / size for weight, size in zip(cfg.DATASETS.WEIGHTS, sizes) for _ in range(size)]
    if len(cfg.DATASETS.RATIOS) == len(sizes):
        cfg.DATASETS.RATIOS = [ratio for ratio, size in zip(cfg.DATASETS.RATIOS, sizes) for _ in range(size)]
    cfg.DATASETS.TRAIN = tuple(expand_groups(cfg.DATASETS.TRAIN))
    cfg.DATASETS.TEST = tuple(expand_groups(cfg.DATASETS.TEST))
    cfg.TEST.RETAINED = tuple(expand_groups(cfg.TEST.RETAINED))


def unknown_name(name: str) -> str:
    """The sentence for a name that is no data set: what it may have meant, and how a file is named instead."""
    near = difflib.get_close_matches(name, [*DatasetCatalog, *dataset_groups()], n=4)
    known = f"did you mean {' or '.join(near)}?" if near else "datasets/README.md lists the known ones."
    return (
        f"there is no data set {name!r}; {known} Any COCO or MDETR json, ODVG or "
        f"GRIT rows can be named with --dataset {name}=annotations:image_folder"
    )
