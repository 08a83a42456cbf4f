"""Reading COCO-format annotations that other people's tools wrote.

What can be repaired without guessing is repaired, and each kind of repair is reported once with its count and first
example. What cannot is refused with a sentence that names the file and the record.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from grounding_dino.data.segmentations import filled_pixels, rle_fault
from grounding_dino.text.prompt import name_fault, normalised_name
from grounding_dino.text.tokenizer import build_tokenizer

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_MOST_DIGITS = 18  # of an id that is text: more do not fit into 64 bits
_LARGEST_SIDE = 10**9  # pixels; beyond is no size of a picture
# How compressed files begin, which are often handed on as they were downloaded.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
BOX_TOLERANCE = 1.0  # pixels that a box may stand out of its picture (rounding) without being touched


class CocoFormatError(ValueError):
    """An annotation file that cannot be used as it is."""


@dataclass
class CleaningReport:
    """What was repaired: each kind with its count and its first example."""

    json_file: str
    findings: dict[str, tuple[int, str]] = field(default_factory=dict)

    def note(self, kind: str, example: str) -> None:
        """Count one repair."""
        count, first = self.findings.get(kind, (0, example))
        self.findings[kind] = (count + 1, first)

    def sentences(self) -> list[str]:
        return [f"{kind}: {count} (first: {example})" for kind, (count, example) in self.findings.items()]

    def settle(self, strict: bool) -> None:
        """Warn once a kind, or with `strict` refuse.

        Raises:
            CocoFormatError: `strict`, and something had to be repaired.
        """
        if strict and self.findings:
            raise CocoFormatError(f"{self.json_file} needs repairs: {'; '.join(self.sentences())}")
        for sentence in self.sentences():
            logger.warning("%s: %s", self.json_file, sentence)


def read_coco(json_file: str) -> Record:
    """The content of an annotation file, with the lists `images`, `annotations` and `categories` in place.

    Raises:
        FileNotFoundError: no such file.
        CocoFormatError: not JSON, not an object, or a list is missing that has to be there.
    """
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"there is no annotation file {json_file!r}; check the path")
    refuse_compressed(json_file)
    try:
        with open(json_file, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise CocoFormatError(f"{json_file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CocoFormatError(f"{json_file} holds a {type(content).__name__}; COCO annotations are an object")
    if "images" not in content:
        keys = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise CocoFormatError(f"{json_file} has no key 'images' (it has: {keys}); is it a COCO annotation file?")
    content.setdefault("annotations", [])
    if "categories" not in content and not content["annotations"]:
        content["categories"] = []
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise CocoFormatError(f"{json_file} has no list {key!r}; without it the annotations mean nothing")
        for index, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise CocoFormatError(f"entry {index} of {key!r} in {json_file} is {_short(entry)}, not an object")
    return content


def refuse_compressed(path: str) -> None:
    """Refuse a file of annotations that has to be unpacked first.

    Raises:
        CocoFormatError: it begins as a compressed file does.
    """
    with open(path, "rb") as file:
        head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise CocoFormatError(f"{path} is compressed ({name}); unpack it and name the file that was in it")


def clean_coco(content: Record, json_file: str, image_root: str | None) -> tuple[Record, CleaningReport]:
    """Repaired content (a new dict; its records are copies where changed) and the report.

    Without `image_root` no picture is looked for.

    Raises:
        CocoFormatError: a category or picture without id or name, a category id given twice, a category name that no
            prompt holds, no picture left.
    """
    report = CleaningReport(json_file)
    categories = _check_categories(content["categories"], json_file)
    images = _clean_images(content["images"], json_file, image_root, report)
    annotations = _clean_annotations(content["annotations"], images, {c["id"] for c in categories}, report)
    if not annotations and content["annotations"]:
        report.note("no annotation is left, so nothing can be trained on or scored", "see the other warnings")
    elif not annotations:
        logger.warning("%s has no annotations: it can be predicted on, but not trained on or scored", json_file)
    cleaned = {**content, "categories": categories, "images": list(images.values()), "annotations": annotations}
    return cleaned, report


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` can be counted with: finite, and no whole number beyond what a float holds (JSON has them)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_size(value: object) -> int:
    """The width or height of a picture as a number, 0 where it is none; MDETR's Flickr30k files write it as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= _MOST_DIGITS:
        value = int(value)
    return int(value) if is_number(value) and 0 < value < _LARGEST_SIDE else 0


def is_integer(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number, and not a truth value, which Python counts as one."""
    return isinstance(value, int) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------- categories and pictures


def _check_categories(categories: list[Record], json_file: str) -> list[Record]:
    names: dict[int, str] = {}
    written: set[str] = set()
    for index, category in enumerate(categories):
        number, name = category.get("id"), category.get("name")
        where = f"category {index} of {json_file} ({_short(category)})"
        if not is_integer(number):
            raise CocoFormatError(f"{where} has no integer 'id'; give it one")
        if not isinstance(name, str):
            raise CocoFormatError(f"{where} has no 'name' that is text; the name is what the model is asked for")
        check_name(name, f"the 'name' of {where}")
        if number in names:
            raise CocoFormatError(f"{where} has the id of {names[number]!r} too; category ids have to differ")
        if normalised_name(name) in written:
            logger.warning("%s names two categories %r; the model cannot tell them apart", json_file, name)
        names[number] = name
        written.add(normalised_name(name))
    return categories


def check_name(name: str, where: str) -> None:
    """Refuse a name or an expression that no prompt of the packaged vocabulary and the usual length holds.

    Raises:
        CocoFormatError: it has no word or too many tokens; the message begins with `where`.
    """
    fault = name_fault(name, build_tokenizer())
    if fault:
        raise CocoFormatError(f"{where} {fault}")


def _clean_images(
    images: list[Record], json_file: str, image_root: str | None, report: CleaningReport
) -> dict[int | str, Record]:
    """The usable pictures by their ids in the file; the ids in the records are all numbers or all text."""
    if not images:
        raise CocoFormatError(f"{json_file} lists no pictures ('images' is empty)")
    if image_root is not None and not os.path.isdir(image_root):
        raise FileNotFoundError(f"there is no picture folder {image_root!r}, which {json_file} needs; check the path")
    kept: dict[int | str, Record] = {}
    missing = []
    for index, image in enumerate(images):
        number, name = image.get("id"), image.get("file_name")
        where = f"picture {index} of {json_file} ({_short(image)})"
        if not is_integer(number) and not isinstance(number, str):
            raise CocoFormatError(f"{where} has no 'id'; give it a number of its own")
        if not isinstance(name, str) or not name:
            raise CocoFormatError(f"{where} has no 'file_name'")
        example = f"picture {number!r}, {name}"
        if number in kept:
            report.note("dropped pictures whose id was there already", example)
        elif image_root is not None and not os.path.isfile(os.path.join(image_root, name)):
            missing.append(name)
            report.note(f"dropped pictures that are missing in {image_root}", example)
        else:
            sized = _with_size(image, os.path.join(image_root or "", name), example, report)
            if sized is not None:
                kept[number] = sized
    if not kept:
        hint = f"; {os.path.join(image_root or '', missing[0])} for one is missing" if missing else ""
        raise CocoFormatError(f"{json_file} has no usable picture{hint}; check the picture folder")
    return _one_type_of_ids(kept, report)


def _one_type_of_ids(images: dict[int | str, Record], report: CleaningReport) -> dict[int | str, Record]:
    """Numbers instead of ids that are text, where both occur: evaluation sorts ids, and the two have no order."""
    numbers = [number for number in images if isinstance(number, int)]
    if len(numbers) in (0, len(images)):
        return images
    fresh = itertools.count(max(numbers) + 1)
    result = dict(images)
    for number, image in images.items():
        if isinstance(number, str):
            result[number] = {**image, "id": next(fresh)}
            example = f"{number!r}, now {result[number]['id']}"
            report.note("renumbered pictures whose id is text, since the others' are numbers", example)
    return result


def _with_size(image: Record, path: str, example: str, report: CleaningReport) -> Record | None:
    """The record with the picture's width and height, read from the file where it has none."""
    if all(is_integer(image.get(key)) and as_size(image[key]) for key in ("width", "height")):
        return image
    from detectron2.data import detection_utils

    try:
        height, width = detection_utils.read_image(path).shape[:2]
    except Exception:  # whatever a decoder raises on a broken file
        report.note("dropped pictures without a size whose file cannot be read", example)
        return None
    report.note("filled in the size of pictures from their files", example)
    return {**image, "width": width, "height": height}


# ------------------------------------------------------------------------------------------------ annotations


def _clean_annotations(
    annotations: list[Record], images: dict[int | str, Record], category_ids: set[int], report: CleaningReport
) -> list[Record]:
    kept: list[Record] = []
    filled = filled_pixels([annotation.get("segmentation") for annotation in annotations])
    for index, annotation in enumerate(annotations):
        example = f"annotation {annotation.get('id', f'at place {index}')!r} of picture {annotation.get('image_id')!r}"
        number = annotation.get("category_id")
        image, category = lookup(images, annotation.get("image_id")), find_id(category_ids, number)
        if image is None:
            report.note("dropped annotations of pictures that are not listed (or were dropped)", example)
        elif category is None:
            report.note("dropped annotations of categories that are not listed", f"{example}, category {number!r}")
        else:
            if number not in category_ids or annotation["image_id"] not in images:
                report.note('took ids that are text for numbers, or the other way ("7" and 7)', example)
            repaired = clean_box({**annotation, "category_id": category}, image, example, report)
            if repaired is not None:
                kept.append(_clean_fields(repaired, image, example, report, filled[index]))
    return _distinct_ids(kept, report)


def lookup(images: Mapping[int | str, Record], number: object) -> Record | None:
    """The picture with this id; None where there is none, or where it is no id."""
    found = find_id(images, number)
    return None if found is None else images[found]


def by_owner(
    annotations: Iterable[Record], known: Collection[int | str], report: CleaningReport, owners: str
) -> dict[int | str, list[Record]]:
    """Annotations by the id of `known` that their `image_id` means; others are noted as of `owners` not listed."""
    found: dict[int | str, list[Record]] = {}
    for annotation in annotations:
        number = find_id(known, annotation.get("image_id"))
        if number is None:
            example = f"annotation {annotation.get('id')!r} of image_id {annotation.get('image_id')!r}"
            report.note(f"dropped annotations of {owners}", example)
        else:
            found.setdefault(number, []).append(annotation)
    return found


def find_id(known: Collection[int | str], number: object) -> int | str | None:
    """The id of `known` that `number` means: itself, or else the same number written as text ("7" and 7); or None."""
    if type(number) is int and number in known:  # nearly always, and asked for every annotation of a file
        return number
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if is_integer(number):
        return next((found for found in (number, str(number)) if found in known), None)
    if not isinstance(number, str):
        return None
    if number not in known and number.isdecimal() and len(number) <= _MOST_DIGITS:
        return int(number) if int(number) in known else None
    return number if number in known else None


def clean_box(annotation: Record, image: Record, example: str, report: CleaningReport) -> Record | None:
    """The annotation with its `bbox` (XYWH, pixels) inside its picture; None where nothing of the box is left."""
    box = annotation.get("bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(is_number(value) for value in box):
        report.note("dropped annotations whose box is not four finite numbers", f"{example}, {_short(box)}")
        return None
    x, y, width, height = (float(value) for value in box)
    if width <= 0 or height <= 0:
        report.note("dropped annotations whose box has no area", f"{example}, {_short(box)}")
        return None
    overshoot = max(-x, -y, x + width - image["width"], y + height - image["height"])
    if overshoot <= BOX_TOLERANCE:
        return annotation
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(image["width"])), min(y + height, float(image["height"]))
    where = f"{example}, {_short(box)} in {image['width']} x {image['height']}"
    if right <= left or bottom <= top:
        report.note("dropped annotations whose box is outside the picture", where)
        return None
    report.note("clipped boxes that stand out of the picture", where)
    return {**annotation, "bbox": [left, top, right - left, bottom - top]}


def _clean_fields(
    annotation: Record, image: Record, example: str, report: CleaningReport, filled: int | None
) -> Record:
    """The annotation with its picture's id, `area`, `iscrowd` and, if any, a usable `segmentation`."""
    repaired = {**annotation, "image_id": image["id"]}
    if repaired.get("iscrowd") not in (0, 1):
        if "iscrowd" in repaired:
            report.note("took annotations with a strange 'iscrowd' for single objects", example)
        else:
            report.note("filled in 'iscrowd': 0", example)
        repaired["iscrowd"] = 0
    if not is_number(repaired.get("area")) or repaired["area"] < 0:
        report.note("filled in 'area' from the box", example)
        repaired["area"] = float(repaired["bbox"][2] * repaired["bbox"][3])
    segmentation = repaired.pop("segmentation", None)
    usable = clean_segmentation(segmentation, image, example, report, filled)
    if usable:
        repaired["segmentation"] = usable
    return repaired


def clean_segmentation(
    segmentation: object, image: Record, example: str, report: CleaningReport, filled: int | None = None
) -> list[list[float]] | Record | None:
    """The polygons with at least three corners, or the RLE if it fills the picture; None if nothing is left.

    `filled` is what :func:`filled_pixels` says of it, where that was asked for many at once, which is faster.
    """
    fault = ""
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if _is_polygon(polygon)]
        if polygons:
            return polygons
    elif isinstance(segmentation, dict):
        fault = rle_fault(segmentation, image["height"], image["width"], filled) or ""
        if not fault:
            return segmentation
    if segmentation:
        report.note("dropped unusable segmentations (their boxes stay)", f"{example}, {fault}" if fault else example)
    return None


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(is_number, polygon))


def _distinct_ids(annotations: Sequence[Record], report: CleaningReport) -> list[Record]:
    """Annotations with positive ids of their own: pycocotools takes id 0 for "unmatched" and merges equal ids."""
    seen: set[int] = set()
    next_id = 1 + max((a["id"] for a in annotations if is_integer(a.get("id"))), default=0)
    result = []
    for index, annotation in enumerate(annotations):
        number = annotation.get("id")
        usable = is_integer(number) and number > 0
        if not usable or number in seen:
            kind = "an id that was there already" if usable else "no usable id (a positive number)"
            report.note(f"renumbered annotations with {kind}", f"annotation {number!r} at place {index}")
            annotation = {**annotation, "id": max(next_id, 1)}
            next_id = annotation["id"] + 1
        seen.add(annotation["id"])
        result.append(annotation)
    return result
