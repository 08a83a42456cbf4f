"""Registering instance, semantic and panoptic sets whose classes are a published list.

Metadata are complete from the registration on, without a look at files. Paths are looked up anew below `dataset_root()`
when a set is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.coco_json import load_coco, set_metadata
from grounding_dino.data.datasets.panoptic_json import load_panoptic
from grounding_dino.data.datasets.paths import dataset_root, require
from grounding_dino.data.datasets.segmentation_classes import (
    SegmentationClass,
    instance_metadata,
    panoptic_metadata,
    semantic_metadata,
)
from grounding_dino.data.datasets.semantic_maps import load_semantic

from detectron2.data import DatasetCatalog, MetadataCatalog

Record = dict[str, Any]

# What panoptic predictions are scored by: masks of things, panoptic quality, and the semantic maps that come with them.
PANOPTIC_EVALUATORS = ("coco", "coco_panoptic_seg")
SEMANTIC_EVALUATOR = "sem_seg"


def register_semantic_set(
    name: str,
    classes: Sequence[SegmentationClass],
    hint: str,
    image_root: str,
    sem_seg_root: str,
    image_ending: str = ".jpg",
    map_ending: str = ".png",
) -> None:
    """Make a semantic set known, unless its name is taken. Its maps hold indices into `classes`, 255 for none.

    Args:
        hint: where the files come from, as `paths.require` takes it.
        image_root: like all paths, below `dataset_root()`.
        image_ending, map_ending: as :func:`load_semantic` takes them.
    """

    def load(found: Mapping[str, str]) -> list[Record]:
        return load_semantic(found["image_root"], found["sem_seg_root"], image_ending, map_ending)

    paths = {"image_root": image_root, "sem_seg_root": sem_seg_root}
    _register(name, load, hint, paths, {**semantic_metadata(classes), "evaluator_type": SEMANTIC_EVALUATOR})


def register_instance_set(
    name: str, classes: Sequence[SegmentationClass], hint: str, image_root: str, json_file: str
) -> None:
    """Make a COCO json with the things of `classes` known, unless its name is taken."""

    def load(found: Mapping[str, str]) -> list[Record]:
        adapt = functools.partial(_with_things_of, classes, found["json_file"])
        return load_coco(found["json_file"], found["image_root"], name, adapt=adapt, score_copy=False)

    paths = {"image_root": image_root, "json_file": json_file}
    _register(name, load, hint, paths, {**instance_metadata(classes), "evaluator_type": "coco"})


def register_panoptic_set(
    name: str,
    classes: Sequence[SegmentationClass],
    hint: str,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    json_file: str,
    sem_seg_root: str = "",
    picture_of: Callable[[Record], str] | None = None,
    label_map_of: Callable[[Record], str] | None = None,
) -> None:
    """Make a set in COCO's panoptic format known, unless its name is taken.

    Args:
        json_file: instances of the same pictures, for evaluation alone.
        sem_seg_root: semantic maps of the same pictures, if there are.
        picture_of: as :func:`load_panoptic` takes it.
        label_map_of: annotation -> path of its map below `sem_seg_root`; by default the `file_name` of its PNG.
    """

    def load(found: Mapping[str, str]) -> list[Record]:
        def map_path(annotation: Record) -> str:
            path = label_map_of(annotation) if label_map_of else annotation["file_name"]
            return str(Path(found["sem_seg_root"]) / path)

        set_metadata(name, json_file=str(dataset_root() / json_file))
        maps = map_path if sem_seg_root else None
        metadata = MetadataCatalog.get(name).as_dict()
        roots = (found["image_root"], found["panoptic_root"])
        return load_panoptic(found["panoptic_json"], *roots, metadata, picture_of, maps)

    paths = {"image_root": image_root, "panoptic_root": panoptic_root, "panoptic_json": panoptic_json}
    evaluators = list(PANOPTIC_EVALUATORS)
    if sem_seg_root:
        paths["sem_seg_root"] = sem_seg_root
        evaluators.append(SEMANTIC_EVALUATOR)
    facts = {"json_file": str(dataset_root() / json_file), "evaluator_type": evaluators}
    _register(name, load, hint, paths, {**panoptic_metadata(classes), **facts})


def _register(
    name: str,
    load: Callable[[Mapping[str, str]], list[Record]],
    hint: str,
    paths: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> None:
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, functools.partial(_load_below_root, name, load, hint, paths))
        at_root = {key: str(dataset_root() / path) for key, path in paths.items()}
        MetadataCatalog.get(name).set(**metadata, **at_root)


def _load_below_root(
    name: str, load: Callable[[Mapping[str, str]], list[Record]], hint: str, paths: Mapping[str, str]
) -> list[Record]:
    found = {key: str(require(path, hint)) for key, path in paths.items()}
    set_metadata(name, **found)
    return load(found)


def _with_things_of(classes: Sequence[SegmentationClass], json_file: str, content: Record) -> Record:
    """The content with all things of the list as categories, so that its classes are numbered as the model's are."""
    things = {c.number: c.name for c in classes if c.is_thing}
    said = {category.get("id"): category.get("name") for category in content["categories"]}
    for number, name in said.items():
        if number not in things:
            raise CocoFormatError(
                f"{json_file} has the category {number!r} ({name!r}), which is none of the {len(things)} things of "
                "this data set; is it the json of another, or one with other ids?"
            )
    categories = [
        {"id": number, "name": name, "original_name": said.get(number) or name} for number, name in things.items()
    ]
    return {**content, "categories": categories}
