"""Referring expressions (a phrase and the box it names) as Detectron2 records.

Two layouts are read: ours (`images` and `expressions` of image_id, caption, bbox; see datasets/README.md), and MDETR's
for RefCOCO (one entry of `images` per phrase, with `caption`, and its annotations). Several annotations of an MDETR
entry are several right boxes of one expression, unless they mark different words: phrase grounding (see `mdetr`).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import (
    CleaningReport,
    CocoFormatError,
    as_size,
    by_owner,
    clean_box,
    is_integer,
    lookup,
    read_coco,
)
from grounding_dino.data.datasets.coco_json import set_metadata
from grounding_dino.data.datasets.rows import check_pictures
from grounding_dino.text.prompt import name_fault
from grounding_dino.text.tokenizer import build_tokenizer

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

Record = dict[str, Any]


def load_refexp(
    json_file: str,
    image_root: str | None,
    dataset_name: str | None = None,
    group_by_picture: bool = False,
    targets_optional: bool = False,
) -> list[Record]:
    """Records with a prompt of their own: `categories` holds the expressions, `category_id` indexes them.

    Boxes are cleaned as those of COCO files are. An expression without any box left, without a picture, or without a
    caption that a prompt holds is dropped, and one whose id is another's too gets a new id; one warning of each kind
    counts them.

    Args:
        image_root: None leaves file names as they are, and looks for no picture.
        group_by_picture: one record a picture with all its expressions; else one record an expression.
        targets_optional: keep expressions that name nothing in their picture, as gRefCOCO has them: without a box, or
            in MDETR's layout with an annotation that is `empty` or of the category -1.

    Returns:
        records with `file_name, image_id, height, width, categories, referring=True, expression_ids, annotations`.

    Raises:
        FileNotFoundError: no such file, no picture folder, or none of the first pictures in it.
        CocoFormatError: another layout, or no expression left.
    """
    content = read_coco(json_file)
    report = CleaningReport(json_file)
    images = _by_id(content["images"], report)
    groups: dict[Any, list[Record]] = {}
    for index, expression in enumerate(_with_own_ids(_expressions(content, images, report, targets_optional), report)):
        image = _picture(expression, images, report)
        cleaned = None if image is None else _clean(expression, image, report, targets_optional)
        if image is not None and cleaned is not None:
            groups.setdefault(image["file_name"] if group_by_picture else index, []).append(cleaned)
    report.settle(strict=False)
    if not groups:
        what = "no referring expression" if targets_optional else "no referring expressions with a box"
        raise CocoFormatError(f"{json_file} has {what}; {'; '.join(report.sentences()) or 'it lists none'}")
    records = [_record(group, images[group[0]["image_id"]], image_root or "") for group in groups.values()]
    if image_root is not None:
        check_pictures(records, image_root)
    if dataset_name is not None:
        set_metadata(dataset_name, json_file=json_file, image_root=image_root)
    return records


def gather_expressions(records: Sequence[Record]) -> list[Record]:
    """Records of referring expressions with those of a picture in one, in the order of pictures; others as they are.

    Evaluation reads them so, whatever a set's own records are: the image backbone runs once a picture, and
    TEST.DESCRIPTIONS_PER_PROMPT can ask for several expressions together.
    """
    gathered: list[Record] = []
    places: dict[Any, int] = {}
    for record in records:
        if "expression_ids" not in record:
            gathered.append(record)
            continue
        place = places.setdefault((record["file_name"], record.get("token_score")), len(gathered))
        if place == len(gathered):
            gathered.append(record)
            continue
        first = gathered[place]
        before = len(first["categories"])
        added = [{**item, "category_id": item["category_id"] + before} for item in record["annotations"]]
        gathered[place] = {
            **first,
            "categories": [*first["categories"], *record["categories"]],
            "expression_ids": [*first["expression_ids"], *record["expression_ids"]],
            "annotations": [*first["annotations"], *added],
        }
    return gathered


def register_refexp(name: str, json_file: str, image_root: str, group_by_picture: bool = False) -> None:
    """Make referring expressions known under `name`; nothing is read before it is used.

    Raises:
        ValueError: the name is taken.
    """
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    DatasetCatalog.register(name, functools.partial(load_refexp, json_file, image_root, name, group_by_picture))
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type="refexp")


def _by_id(images: list[Record], report: CleaningReport) -> dict[int | str, Record]:
    """The usable entries by their ids, with sizes that are numbers."""
    found: dict[int | str, Record] = {}
    for image in images:
        number, name = image.get("id"), image.get("file_name")
        example = f"picture {number!r}, {name!r}"
        sides = {key: as_size(image.get(key)) for key in ("height", "width")}
        if not isinstance(number, (int, str)) or not isinstance(name, str) or not name or not all(sides.values()):
            report.note("dropped entries of 'images' without id, file_name, height or width", example)
        elif number in found:
            report.note("dropped entries of 'images' with the id of another", example)
        else:
            found[number] = {**image, **sides}
    return found


def _expressions(
    content: Record, images: dict[int | str, Record], report: CleaningReport, targets_optional: bool
) -> list[Record]:
    """Each with `id` (None where it has none), `image_id`, `caption` and `boxes`, unchecked."""
    json_file = report.json_file
    if isinstance(content.get("expressions"), list):
        for index, expression in enumerate(content["expressions"]):
            if not isinstance(expression, dict):
                raise CocoFormatError(f"entry {index} of 'expressions' in {json_file} is no object: {expression!r}")
        expressions = []
        for entry in content["expressions"]:
            boxes = [] if targets_optional and entry.get("bbox") is None else [entry.get("bbox")]
            expressions.append({**{key: entry.get(key) for key in ("id", "image_id", "caption")}, "boxes": boxes})
        return expressions
    captions = {number: image["caption"] for number, image in images.items() if "caption" in image}
    if not captions and not any("caption" in image for image in content["images"]):
        raise CocoFormatError(f"{json_file} has neither a list 'expressions' nor captions in its 'images'")
    annotations = content["annotations"]
    if targets_optional:
        annotations = [annotation for annotation in annotations if not is_empty(annotation)]
    owned = by_owner(annotations, captions, report, "expressions that are not listed (or were dropped)")
    found: dict[Any, list[Record]] = {number: [] for number in captions} if targets_optional else {}
    found |= owned
    return [_mdetr_expression(number, captions[number], boxes, json_file) for number, boxes in found.items()]


def is_empty(annotation: Record) -> bool:
    """Whether an annotation of MDETR's layout says that its expression names nothing, as gRefCOCO's files do."""
    return bool(annotation.get("empty")) or annotation.get("category_id") == -1


def _mdetr_expression(number: int | str, caption: object, annotations: list[Record], json_file: str) -> Record:
    marked = [annotation.get("tokens_positive") for annotation in annotations]
    if any(words != marked[0] for words in marked):
        raise CocoFormatError(
            f"the boxes of entry {number!r} ({caption!r}) in {json_file} belong to different words of it "
            "('tokens_positive'): this is phrase grounding, which `register_mdetr` reads, and no referring expression, "
            "whose whole caption names a thing"
        )
    boxes = [annotation.get("bbox") for annotation in annotations]
    return {"id": number, "image_id": number, "caption": caption, "boxes": boxes}


def _with_own_ids(expressions: list[Record], report: CleaningReport) -> list[Record]:
    """Expressions whose ids differ, since results are kept by id; what has no id gets a number."""
    fresh = itertools.count(1 + max((e["id"] for e in expressions if is_integer(e["id"])), default=-1))
    seen: set[str] = set()
    result = []
    for index, expression in enumerate(expressions):
        number = expression["id"]
        usable = is_integer(number) or isinstance(number, str)
        # As text: results are written as json, whose keys are text.
        if not usable or str(number) in seen:
            if number is not None:
                kind = "an id that was there already" if usable else "no usable id (a number or text)"
                report.note(f"renumbered expressions with {kind}", f"expression {index}, id {number!r}")
            expression = {**expression, "id": next(n for n in fresh if str(n) not in seen)}
        seen.add(str(expression["id"]))
        result.append(expression)
    return result


def _picture(expression: Record, images: dict[int | str, Record], report: CleaningReport) -> Record | None:
    """The expression's picture; None, and a note, where it has none, or no caption that can be asked for."""
    caption = expression["caption"]
    example = f"expression {expression['id']!r}, {str(caption)[:80]!r}"
    image = lookup(images, expression["image_id"])
    if image is None:
        report.note("dropped expressions without a picture that is listed", f"{example}: {expression['image_id']!r}")
        return None
    fault = name_fault(caption, build_tokenizer()) if isinstance(caption, str) else "is no text"
    if fault:
        report.note("dropped expressions whose caption no prompt holds", f"{example} {fault}")
        return None
    return image


def _clean(expression: Record, image: Record, report: CleaningReport, targets_optional: bool) -> Record | None:
    """The expression with the usable ones of its boxes, None where there is none but should be."""
    example = f"expression {expression['id']!r} of picture {image['id']!r}"
    cleaned = [clean_box({"bbox": box}, image, example, report) for box in expression["boxes"]]
    boxes = [found["bbox"] for found in cleaned if found is not None]
    if not boxes and (expression["boxes"] or not targets_optional):
        report.note("dropped expressions without a usable box", f"{example}, {expression['caption']!r}")
        return None
    return {**expression, "image_id": image["id"], "boxes": boxes}


def _record(expressions: list[Record], image: Record, image_root: str) -> Record:
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": index, "iscrowd": 0}
        for index, expression in enumerate(expressions)
        for box in expression["boxes"]
    ]
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "categories": [expression["caption"] for expression in expressions],
        "referring": True,
        "expression_ids": [expression["id"] for expression in expressions],
        "annotations": annotations,
    }
