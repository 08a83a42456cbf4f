"""Flickr30k Entities in MDETR's layout: flickr30k_{train,val,test}.

The training split is read by what boxes belong to (`tokens_positive`), the others by the phrases that are asked for
(`tokens_positive_eval`). Types of phrases (people, clothing, ...) come from the data set's own `Sentences`, where they
lie beside the json files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.captions import Region, Span, caption_record, check_spans, picture_facts
from grounding_dino.data.datasets.coco_cleaning import read_coco
from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.mdetr import load_mdetr
from grounding_dino.data.datasets.paths import require
from grounding_dino.data.datasets.rows import PHRASES_EVALUATOR, RowError, RowReport, check_pictures, check_yield

from detectron2.data import DatasetCatalog, MetadataCatalog

Record = dict[str, Any]

ROOT = Path("flickr30k_entities")
IMAGES, SENTENCES = ROOT / "flickr30k_images", ROOT / "Sentences"
_SOURCE = "MDETR's annotations hold it: https://zenodo.org/records/4729015, mdetr_annotations.tar.gz"
_IMAGES_SOURCE = "ask for the pictures at https://shannon.cs.illinois.edu/DenotationGraph/"
_ENTITY = re.compile(r"\[/EN#\d+((?:/[^\s/\]]+)+)\s+([^\]]*)\]")


def annotation_file(split: str) -> Path:
    """Relative to the folder of data sets; MDETR's file of separate boxes, from which both protocols follow."""
    return ROOT / f"final_flickr_separateGT_{split}.json"


def register_flickr30k() -> None:
    """Register the splits; files are looked up when they are used."""
    for split in ("train", "val", "test"):
        name = f"flickr30k_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, functools.partial(_load_split, split, name))
            MetadataCatalog.get(name).set(evaluator_type=PHRASES_EVALUATOR)


def _load_split(split: str, name: str) -> list[Record]:
    json_file, images = require(annotation_file(split), _SOURCE), require(IMAGES, _IMAGES_SOURCE)
    if split == "train":
        return load_mdetr(str(json_file), str(images), name)
    sentences = json_file.parent / SENTENCES.name
    return load_phrase_grounding(str(json_file), str(images), name, sentences if sentences.is_dir() else None)


def load_phrase_grounding(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    sentences: Path | None = None,
    strict: bool | None = None,
) -> list[Record]:
    """One record a sentence with the phrases that are to be found, each with all of its boxes.

    The phrases are those of `tokens_positive_eval`; in a file without it, what the boxes' `tokens_positive` mark. A box
    is a phrase's if it marks one of its spans, so a box may be that of two phrases, unlike in training. A sentence
    without a phrase is left out.

    Args:
        sentences: a folder with Flickr30k Entities' sentences, `NUMBER.txt`; gives records `phrase_types`.
        strict: refuse a file with an entry that is not in order; None: as DATASETS.STRICT_ON says.

    Raises:
        FileNotFoundError: no such file, or another picture folder.
        CocoFormatError: the file is no such json.
        RowError: no entry can be used, or with `strict` one cannot.
    """
    content = read_coco(json_file)
    report = RowReport(json_file)
    records = list(_records(content, image_root, sentences, report))
    report.settle(strict)
    check_yield(len(records), report)
    check_pictures(records, image_root)
    if dataset_name is not None:
        set_metadata(dataset_name, json_file=json_file, image_root=image_root)
    return records


def _records(content: Record, image_root: str, sentences: Path | None, report: RowReport) -> Iterator[Record]:
    boxes: dict[Any, list[Record]] = {}
    for annotation in content["annotations"]:
        if isinstance(annotation.get("image_id"), (int, str)):
            boxes.setdefault(annotation["image_id"], []).append(annotation)
    for index, image in enumerate(content["images"]):
        report.place = f"{report.json_file}, entry {index} of 'images'"
        number = image.get("id")
        try:
            if not isinstance(number, (int, str)):
                raise RowError("a sentence without an id", f"{number!r}")
            regions = _regions(image, boxes.get(number, []))
            if not regions:
                continue
            record = caption_record(
                picture_facts({**image, "image_id": number}, image_root), image["caption"], regions, report
            )
        except RowError as error:
            report.skip(error)
            continue
        if sentences is not None:
            record["phrase_types"] = _phrase_types(image, record, sentences, report)
        yield record
    report.place = report.json_file


def _regions(image: Record, annotations: list[Record]) -> list[Region]:
    caption = image.get("caption")
    if not isinstance(caption, str):
        raise RowError("an empty caption", f"{caption!r}")
    marked = [(check_spans(a.get("tokens_positive"), caption), a.get("bbox")) for a in annotations]
    asked = image.get("tokens_positive_eval")
    if asked is None:
        asked = [list(spans) for spans in dict.fromkeys(tuple(spans) for spans, _ in marked)]
    if not isinstance(asked, list):
        raise RowError("'tokens_positive_eval' that is no list of phrases", f"{asked!r}")
    phrases = [check_spans(spans, caption) for spans in asked]
    regions = [Region(spans, [box for own, box in marked if set(own) & set(spans)]) for spans in phrases]
    return [region for region in regions if region.boxes]  # the others cannot be found


def _phrase_types(image: Record, record: Record, sentences: Path, report: RowReport) -> list[list[str]]:
    """Of each phrase of the record the types that the data set gives it; none where its sentence is not to be had."""
    file = sentences / f"{image.get('original_img_id')}.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    place = image.get("sentence_id")
    if not isinstance(place, int) or not 0 <= place < len(lines):
        report.note("sentences whose types of phrases are not known", f"line {place!r} of {file}")
        return [[] for _ in record["phrases"]]
    types = entity_types(lines[place])
    return [next((types[span] for span in spans if span in types), []) for spans in record["phrases"]]


def entity_types(line: str) -> dict[Span, list[str]]:
    """The types of each phrase in a sentence of Flickr30k Entities, `[/EN#1/people A man] walks .`, by its characters
    in the plain sentence, whose words are one space apart."""
    found: dict[Span, list[str]] = {}
    plain = ""
    end = 0
    for match in _ENTITY.finditer(line):
        plain = _joined(plain, line[end : match.start()])
        words = " ".join(match.group(2).split())
        start = len(plain) + bool(plain)
        found[start, start + len(words)] = match.group(1).strip("/").split("/")
        plain, end = _joined(plain, words), match.end()
    return found


def _joined(text: str, more: str) -> str:
    return " ".join([*text.split(), *more.split()])
