"""MDETR's json of phrase grounding: Flickr30k Entities and GQA/mixed (GoldG), and what converters write.

It is laid out as COCO, with one entry of `images` a sentence (`caption`), and in each annotation the words that its
box belongs to: `tokens_positive`, character spans of the caption. Several boxes may have the same words, and a box's
words may be several spans. `tokens_positive_eval` of a sentence lists all of its phrases, also those without a box.
`tokens_negative` and `original_img_id` are not needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from grounding_dino.data.datasets.captions import Region, caption_record, picture_facts
from grounding_dino.data.datasets.coco_cleaning import by_owner, read_coco
from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.refexp_json import is_empty
from grounding_dino.data.datasets.rows import PHRASES_EVALUATOR, RowError, RowReport, check_pictures, check_yield

from detectron2.data import DatasetCatalog, MetadataCatalog

Record = dict[str, Any]


def load_mdetr(
    json_file: str, image_root: str, dataset_name: str | None = None, strict: bool | None = None
) -> list[Record]:
    """The records of an MDETR json: a `caption` each, with the `phrases` that its boxes mark.

    A sentence without annotations names nothing in its picture (`phrases` is empty). RefCOCO's files are read in this
    way too; :func:`load_refexp` reads them as expressions, which is what their evaluation needs.

    Args:
        strict: refuse a file with an entry that is not in order; None: as DATASETS.STRICT_ON says.

    Raises:
        FileNotFoundError: no such file, no picture folder, or none of the first pictures in it.
        CocoFormatError: the file is no such json.
        RowError: no entry can be used, or with `strict` one cannot.
    """
    report = RowReport(json_file)
    records = list(grounding_records(read_coco(json_file), image_root, report))
    report.settle(strict)
    check_yield(len(records), report)
    check_pictures(records, image_root)
    if dataset_name is not None:
        set_metadata(dataset_name, json_file=json_file, image_root=image_root)
    return records


def holds_referring_expressions(content: Record) -> bool:
    """Whether a file's entries are referring expressions, one for all of its boxes, and not sentences with phrases.

    It is what `dataset_name` of the entries says (refcoco, refcoco+, refcocog, grefcoco, or another), and without one
    it follows from the words: they are sentences if any entry's boxes mark different ones.
    """
    if isinstance(content.get("expressions"), list):
        return True
    names = {image["dataset_name"] for image in content["images"] if isinstance(image.get("dataset_name"), str)}
    if names:
        return all(name.lower().startswith(("ref", "gref")) for name in names)
    first: dict[Any, Any] = {}
    return all(
        first.setdefault(str(annotation.get("image_id")), annotation.get("tokens_positive"))
        == annotation.get("tokens_positive")
        for annotation in content["annotations"]
    )


def grounding_records(
    content: Record,
    image_root: str,
    report: RowReport,
    image_keys: Sequence[str] = (),
    annotation_keys: Sequence[str] = (),
) -> Iterator[Record]:
    """A caption record of every entry of `images`; what cannot be used is counted in `report` by its place in there.

    Args:
        image_keys, annotation_keys: further keys of entries and annotations that records keep.
    """
    ids = {image["id"] for image in content["images"] if isinstance(image.get("id"), (int, str))}
    report.place = report.json_file
    found = by_owner(content["annotations"], ids, report, "sentences that are not listed")
    taken: set[int | str] = set()
    for index, image in enumerate(content["images"]):
        report.place = f"{report.json_file}, entry {index} of 'images'"
        try:
            number = _new_id(image, taken)
            record = _record(image, found.pop(number, []), image_root, report, annotation_keys)
            yield {**record, **{key: image[key] for key in image_keys if key in image}}
        except RowError as error:
            report.skip(error)


def _new_id(image: Record, taken: set[int | str]) -> int | str:
    """The id of an entry, which is put to those `taken`: boxes belong to the first entry of their id.

    Raises:
        RowError: it has none, or another's.
    """
    number = image.get("id")
    if not isinstance(number, (int, str)):
        raise RowError("a sentence without an id", f"{number!r}")
    if number in taken:
        raise RowError("a sentence with the id of another", f"{number!r}, {image.get('caption')!r}")
    taken.add(number)
    return number


def _record(
    image: Record, annotations: list[Record], image_root: str, report: RowReport, annotation_keys: Sequence[str]
) -> Record:
    number = image["id"]
    facts = picture_facts({**image, "image_id": number}, image_root)
    annotations = [annotation for annotation in annotations if not is_empty(annotation)]
    marked = [annotation for annotation in annotations if annotation.get("tokens_positive")]
    if len(marked) < len(annotations):
        report.note(
            "dropped boxes without words ('tokens_positive')", f"{len(annotations) - len(marked)} of {number!r}"
        )
    if annotations and not marked:
        raise RowError("a sentence whose boxes have no words", f"{image.get('caption')!r}")
    regions = [
        Region(
            annotation["tokens_positive"],
            [annotation.get("bbox")],
            {
                **{key: annotation[key] for key in annotation_keys if key in annotation},
                "iscrowd": int(annotation.get("iscrowd") == 1),
            },
        )
        for annotation in marked
    ]
    listed = image.get("tokens_positive_eval")
    phrases = [spans for spans in listed if spans] if isinstance(listed, list) else []
    return caption_record(facts, image.get("caption"), regions, report, phrases)


def register_mdetr(name: str, json_file: str, image_root: str, strict: bool | None = None) -> None:
    """Make an MDETR json known under `name`; nothing is read before it is used.

    Raises:
        ValueError: the name is taken.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    DatasetCatalog.register(name, functools.partial(load_mdetr, json_file, image_root, name, strict))
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type=PHRASES_EVALUATOR)
