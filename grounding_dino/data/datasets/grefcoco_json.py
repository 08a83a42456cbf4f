"""gRefCOCO as published (`grefs(unc).json` and `instances.json`) into MDETR's layout, one entry a sentence.

An expression of gRefCOCO names any number of objects, also none. Its authors' own conversion marks the head noun of a
sentence, found with spaCy; here the whole sentence is what the boxes belong to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CocoFormatError, read_coco
from grounding_dino.data.datasets.paths import dataset_root, require

Record = dict[str, Any]

SPLITS = ("train", "val", "testA", "testB")
REFS, INSTANCES = Path("coco/grefs/grefs(unc).json"), Path("coco/grefs/instances.json")
ANNOTATIONS = Path("coco/mdetr_annotations")
SOURCE = "download gRefCOCO from https://github.com/henghuiding/gRefCOCO and unpack it there"


def annotation_file(split: str) -> Path:
    """Where the converted split lies, relative to the folder of data sets; the name is that of the authors' script."""
    return ANNOTATIONS / f"finetune_grefcoco_{split}.json"


def convert_grefcoco(refs_file: Path, instances_file: Path, split: str) -> Record:
    """One split in MDETR's layout: an entry of `images` a sentence, with `caption`; none, one or more annotations.

    Raises:
        FileNotFoundError: no such file.
        CocoFormatError: another layout, an entry of an unknown picture or object, or a split without entries.
    """
    instances = read_coco(str(instances_file))
    pictures = {image.get("id"): image for image in instances["images"]}
    objects = {annotation.get("id"): annotation for annotation in instances["annotations"]}
    images: list[Record] = []
    annotations: list[Record] = []
    for ref in _refs(refs_file, split):
        picture = pictures.get(ref.get("image_id"))
        if picture is None:
            raise CocoFormatError(f"{_where(ref, refs_file)} is of a picture that is not in {instances_file}")
        targets = [_object(number, objects, ref, refs_file, instances_file) for number in _target_ids(ref)]
        for sentence in _sentences(ref, refs_file):
            number = len(images)
            images.append(
                {
                    **{key: picture.get(key) for key in ("file_name", "height", "width")},
                    **{"id": number, "original_id": picture["id"], "caption": sentence, "dataset_name": "grefcoco"},
                }
            )
            for target in targets:
                annotations.append(
                    {
                        **{key: target.get(key) for key in ("bbox", "area", "category_id")},
                        **{"id": len(annotations) + 1, "image_id": number, "original_id": target["id"], "iscrowd": 0},
                        "tokens_positive": [[0, len(sentence)]],
                    }
                )
    if not images:
        raise CocoFormatError(f"{refs_file} has no entry of the split {split!r}")
    return {"images": images, "annotations": annotations, "categories": instances["categories"]}


def _refs(refs_file: Path, split: str) -> Iterator[Record]:
    if not refs_file.is_file():
        raise FileNotFoundError(f"there is no {str(refs_file)!r}; {SOURCE}")
    try:
        content = json.loads(refs_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CocoFormatError(f"{refs_file} is not readable as JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(ref, dict) for ref in content):
        raise CocoFormatError(f"{refs_file} is no list of objects, which gRefCOCO's file of expressions is")
    return (ref for ref in content if ref.get("split") == split)


def _where(ref: Record, refs_file: Path) -> str:
    return f"the entry with ref_id {ref.get('ref_id')!r} of {refs_file}"


def _target_ids(ref: Record) -> list[Any]:
    """The ids of the objects that an entry names; -1 stands for none."""
    numbers = ref.get("ann_id")
    return [number for number in (numbers if isinstance(numbers, list) else [numbers]) if number != -1]


def _object(number: Any, objects: dict[Any, Record], ref: Record, refs_file: Path, instances_file: Path) -> Record:
    found = objects.get(number) if isinstance(number, (int, str)) else None
    if found is None:
        raise CocoFormatError(f"{_where(ref, refs_file)} names object {number!r}, which is not in {instances_file}")
    return found


def _sentences(ref: Record, refs_file: Path) -> list[str]:
    sentences = ref.get("sentences")
    if not isinstance(sentences, list):
        raise CocoFormatError(f"{_where(ref, refs_file)} has no list 'sentences'")
    texts = []
    for sentence in sentences:
        text = sentence.get("sent") if isinstance(sentence, dict) else None
        if not isinstance(text, str):
            raise CocoFormatError(f"{_where(ref, refs_file)} has a sentence whose 'sent' is no text: {sentence!r}")
        texts.append(text)
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of datasets/prepare_grefcoco.py."""
    parser = argparse.ArgumentParser(description="gRefCOCO's files into MDETR's layout, which is read later on.")
    parser.add_argument("--refs", type=Path, help=f"default: {REFS} below DETECTRON2_DATASETS")
    parser.add_argument("--instances", type=Path, help=f"default: {INSTANCES} below DETECTRON2_DATASETS")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    options = parser.parse_args(arguments)
    refs, instances = options.refs or require(REFS, SOURCE), options.instances or require(INSTANCES, SOURCE)
    for split in options.splits:
        content = convert_grefcoco(refs, instances, split)
        path = dataset_root() / annotation_file(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.replace(path)
        empty = len(content["images"]) - len({a["image_id"] for a in content["annotations"]})
        print(f"{path}: {len(content['images'])} expressions, {empty} of them without a target")
