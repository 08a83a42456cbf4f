"""Object Detection in the Wild (Li et al. 2022): 35 small data sets, and the 13 of them that GLIP began with.

`grounding_dino/assets/odinw.json` lists folders, class names and captions as published, under the names of the 35;
three entries that end in `_caption` ask by a sentence instead of class names, two that end in `_raw` use the names
in the files, as the benchmark of 13 does where the one of 35 has better ones.
"""

from __future__ import annotations

import functools
import json
import logging
import random
from collections.abc import Callable
from importlib import resources
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError, is_integer
from grounding_dino.data.datasets.coco_json import load_coco
from grounding_dino.data.datasets.label_names import prompt_name, with_name
from grounding_dino.data.datasets.paths import dataset_root, require

from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

Record = dict[str, Any]

HINT = (
    "download the archives of https://huggingface.co/GLIPModel/GLIP/tree/main/odinw_35 into odinw/ and run "
    "`python datasets/prepare_odinw.py`, which unpacks and checks them"
)
PUBLISHED_SPLIT = "val"  # of which published numbers are
FOLDERS = {"train": "train", "val": "valid", "test": "test"}
SHOTS = (1, 3, 5, 10)
SEEDS = (3, 30, 300)  # of the benchmark's few-shot choices; the first is the one without a seed in its name
FEW_SHOT = {
    f"train_{shots}shot" + ("" if seed == SEEDS[0] else f"_seed{seed}"): (shots, seed)
    for shots in SHOTS
    for seed in SEEDS
}
SPLITS = (*FOLDERS, *FEW_SHOT)


@functools.cache
def odinw() -> dict[str, Any]:
    """`sets`: name -> folder, class names and, for some, a caption with the spans of its phrases; `groups`: lists."""
    content = resources.files("grounding_dino").joinpath("assets/odinw.json").read_text(encoding="utf-8")
    return dict(json.loads(content))


def dataset_name(entry: str, split: str) -> str:
    """The registered name of a split of an entry of `odinw()["sets"]`."""
    return f"odinw_{entry}_{split}"


def register_odinw() -> None:
    """Register every split and few-shot choice of every entry; nothing but the package's list is read."""
    for entry in odinw()["sets"]:
        for split in SPLITS:
            name = dataset_name(entry, split)
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, functools.partial(load_odinw, entry, split))
                MetadataCatalog.get(name).set(evaluator_type="coco")


def load_odinw(entry: str, split: str) -> list[Record]:
    """Records of a split, under the class names of `odinw()`; with its caption and phrases where the entry has one.

    Few-shot: the benchmark's own choice (`fewshot_train_shot<k>_seed<seed>.json`) where its file is there, else
    `choose_few_shot` on the training split.

    Raises:
        FileNotFoundError: the files are absent.
        CocoFormatError: the file's classes are not as many as the benchmark's.
    """
    facts = odinw()["sets"][entry]
    name = dataset_name(entry, split)
    adapt = functools.partial(_under_published_names, [prompt_name(n) for n in facts["names"]], name)
    if split in FEW_SHOT:
        shots, seed = FEW_SHOT[split]
        json_file, image_root = _files(facts, "train", f"fewshot_train_shot{shots}_seed{seed}.json")
        if (dataset_root() / json_file).is_file():
            return _asked_by_caption(_load(json_file, image_root, name, adapt), facts)
        records = _load(*_files(facts, "train"), name, adapt)
        logger.info("%s: the benchmark's choice %s is not there; one is drawn with seed %d", name, json_file, seed)
        return _asked_by_caption(choose_few_shot(records, shots, seed), facts)
    return _asked_by_caption(_load(*_files(facts, split), name, adapt), facts)


def choose_few_shot(records: list[Record], shots: int, seed: int) -> list[Record]:
    """Pictures in a shuffled order, each taken if it shows a class of which fewer than `shots` were taken before.

    So every class is in at least `shots` pictures, or in all that show it; classes that come along with others may
    be in more. The choice depends on the seed and the order of the file alone; records come in the file's order.
    """
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    seen: dict[int, int] = {}
    chosen = []
    for index in order:
        classes = {item["category_id"] for item in records[index]["annotations"] if not item["iscrowd"]}
        if any(seen.get(number, 0) < shots for number in classes):
            chosen.append(index)
            for number in classes:
                seen[number] = seen.get(number, 0) + 1
    return [records[index] for index in sorted(chosen)]


def _load(json_file: str, image_root: str, name: str, adapt: Callable[[Record], Record]) -> list[Record]:
    return load_coco(str(require(json_file, HINT)), str(require(image_root, HINT)), name, adapt=adapt)


def _files(facts: Record, split: str, json_name: str = "") -> tuple[str, str]:
    """Annotations and picture folder of a split, below `dataset_root()`."""
    folder = f"odinw/{facts['folder']}"
    if facts.get("layout") == "flat":
        return f"{folder}/{json_name or f'{split}_annotations_without_background.json'}", folder
    part = facts.get(split, FOLDERS[split])
    return f"{folder}/{part}/{json_name or 'annotations_without_background.json'}", f"{folder}/{part}"


def _under_published_names(names: list[str], dataset: str, content: Record) -> Record:
    """The file's categories, in the order of their ids, under the benchmark's names."""
    categories = content["categories"]
    if not all(is_integer(c.get("id")) and isinstance(c.get("name"), str) for c in categories):
        return content  # refused by the checks of the file
    if len(categories) != len(names):
        found = ", ".join(repr(category["name"]) for category in categories)
        raise CocoFormatError(
            f"{dataset} has {len(names)} classes ({', '.join(names)}), but its file lists {len(categories)}: {found}; "
            "take the benchmark's own files, without the background class"
        )
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    return {**content, "categories": [with_name(c, name) for c, name in zip(ordered, names, strict=True)]}


def _asked_by_caption(records: list[Record], facts: Record) -> list[Record]:
    if "caption" not in facts:
        return records
    phrases = [tuple(span) for span in facts["spans"]]
    return [{**record, "caption": facts["caption"], "phrases": phrases} for record in records]
