"""What DATASETS.TEXT says about single data sets, and whether their names can be asked for at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.data.datasets.groups import expand_groups
from grounding_dino.data.text_sampling import TextSampler
from grounding_dino.text.prompt_builder import PromptBuilder

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

# Keys that INPUT has for all data sets, and DATASETS.TEXT for single ones.
_SHARED_KEYS = (
    "NUM_NEGATIVE_CATEGORIES",
    "FULL_NEGATIVES_PROBABILITY",
    "SHUFFLE_CATEGORIES_ON",
    "SPLIT_NAMES_ON",
    "RANDOM_FLIP",
)
KEYS = (*_SHARED_KEYS, "NAMES_FILE")


@dataclass(frozen=True)
class TextSettings:
    """How the text of one data set is made.

    Attributes:
        sampler: draws training prompts.
        flip: INPUT.RANDOM_FLIP of this data set.
        prompt_names: category name -> the name that prompts write.
    """

    sampler: TextSampler
    flip: str
    prompt_names: Mapping[str, str] = field(default_factory=dict)


def default_settings(cfg: CfgNode) -> TextSettings:
    """The settings of data sets that DATASETS.TEXT does not name."""
    return _settings(cfg, {})


def settings_by_dataset(cfg: CfgNode) -> dict[str, TextSettings]:
    """The settings of each data set that DATASETS.TEXT names, itself or by a group; what is left open is as in INPUT.

    Those of a data set itself go before those of its group.

    Raises:
        ValueError: an unknown data set or key, a value of another type or out of range, or a names file that is none.
        FileNotFoundError: there is no such names file.
    """
    alone: dict[str, TextSettings] = {}
    in_groups: dict[str, TextSettings] = {}
    for name, given in cfg.DATASETS.TEXT.items():
        members = expand_groups([name])
        for member in members:
            _check_dataset(cfg, member)
        _check_keys(cfg, name, given)
        try:
            settings = _settings(cfg, given)
        except ValueError as error:
            raise ValueError(f"DATASETS.TEXT of {name!r}: {error}") from error
        (alone if members == [name] else in_groups).update(dict.fromkeys(members, settings))
    return {**in_groups, **alone}


def read_names_file(path: str) -> dict[str, str]:
    """A json object of category names and the names that prompts write instead.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path!r}, which NAMES_FILE of DATASETS.TEXT names; check the path")
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    form = 'write {"category name": "name in prompts", ...}'
    if not isinstance(names, dict):
        raise ValueError(f"{path} holds a {type(names).__name__}; {form}")
    for name, written in names.items():
        if not isinstance(written, str) or not written.strip():
            raise ValueError(f"{path} gives {name!r} no name that is text, but {written!r}; {form}")
    return names


def rename(names: Sequence[str], prompt_names: Mapping[str, str], dataset: str = "") -> list[str]:
    """`names` as prompts write them.

    Raises:
        ValueError: `dataset` is given, and not one of `names` is in `prompt_names`: a file about something else.
    """
    absent = [name for name in prompt_names if name not in names] if dataset else []
    if absent and len(absent) == len(prompt_names):
        raise ValueError(
            f"the names file of {dataset!r} is about {_listed(absent)}, but the data set has none of them; its "
            f"categories are {_listed(names)}"
        )
    if absent:
        logger.warning("the names file of %r names %s, which the data set does not have", dataset, _listed(absent))
    return [prompt_names.get(name, name) for name in names]


def check_names(cfg: CfgNode, names: Iterable[str], where: str) -> None:
    """See that each name can stand in a prompt of MODEL.TEXT_ENCODER.MAX_TOKENS.

    Raises:
        ValueError: one cannot; the message says how long a name may be.
    """
    prompts = PromptBuilder.from_config(cfg)
    for name in names:
        fault = prompts.name_fault(name)
        if fault:
            raise ValueError(
                f"the name {name[:80]!r} of {where} {fault} (MODEL.TEXT_ENCODER.MAX_TOKENS is {prompts.max_tokens}; "
                "NAMES_FILE of DATASETS.TEXT can give it another name)"
            )


def check_all_names(cfg: CfgNode, records: Iterable[Mapping[str, Any]], dataset: str) -> None:
    """:func:`check_names` of a loaded data set: of its classes, as prompts write them, and of what its records bring.

    Raises:
        ValueError: one cannot stand in a prompt, or DATASETS.TEXT makes no sense.
    """
    settings = settings_by_dataset(cfg).get(dataset)
    classes = MetadataCatalog.get(dataset).get("thing_classes", None) or ()
    check_names(cfg, rename(classes, settings.prompt_names if settings else {}, dataset), f"the data set {dataset!r}")
    for record in records:
        if "categories" in record:
            check_names(cfg, record["categories"], f"{record.get('file_name')} (data set {dataset!r})")


def _settings(cfg: CfgNode, given: Mapping[str, Any]) -> TextSettings:
    values = {**{key: cfg.INPUT[key] for key in _SHARED_KEYS}, "NAMES_FILE": "", **given}
    sampler = TextSampler(
        num_negatives=values["NUM_NEGATIVE_CATEGORIES"],
        full_probability=values["FULL_NEGATIVES_PROBABILITY"],
        shuffle=values["SHUFFLE_CATEGORIES_ON"],
        split_names=values["SPLIT_NAMES_ON"],
        prompts=PromptBuilder.from_config(cfg),
    )
    names = read_names_file(values["NAMES_FILE"]) if values["NAMES_FILE"] else {}
    return TextSettings(sampler, values["RANDOM_FLIP"], names)


def _check_dataset(cfg: CfgNode, name: str) -> None:
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if name not in used and name not in DatasetCatalog:
        raise ValueError(
            f"DATASETS.TEXT has settings for {name!r}, which is no data set; those of this configuration are "
            f"{', '.join(dict.fromkeys(used)) or 'none'}"
        )


def _check_keys(cfg: CfgNode, name: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"DATASETS.TEXT of {name!r} is {given!r}; give it keys and values: {', '.join(KEYS)}")
    for key, value in given.items():
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r} in DATASETS.TEXT of {name!r}; the known ones are {', '.join(KEYS)}")
        wanted = str if key == "NAMES_FILE" else type(cfg.INPUT[key])
        if not (type(value) is wanted or (wanted is float and type(value) is int)):
            raise ValueError(f"{key} in DATASETS.TEXT of {name!r} is {value!r}; it takes a value of {wanted.__name__}")


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
