"""COCO's panoptic format (Kirillov et al. 2019): a json of segments, and for each picture a PNG of their ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import (
    CleaningReport,
    CocoFormatError,
    as_size,
    find_id,
    is_integer,
    read_coco,
)

Record = dict[str, Any]

MAX_SEGMENT_ID = 256**3 - 1  # what the three channels of a pixel hold


def load_panoptic(
    json_file: str,
    image_root: str,
    panoptic_root: str,
    metadata: Mapping[str, Any],
    picture_of: Callable[[Record], str] | None = None,
    label_map_of: Callable[[Record], str] | None = None,
) -> list[Record]:
    """Detectron2's records of a panoptic set: `pan_seg_file_name` and `segments_info` with contiguous classes.

    Only the json is read here; whether a PNG has the ids of its segments is seen where it is read
    (`segmentation_maps.read_panoptic_map`).

    Args:
        metadata: `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`, the latter of all classes
            or of stuff alone.
        picture_of: entry of `images` -> path of the picture below `image_root`; by default its `file_name`.
        label_map_of: annotation -> path of the semantic map, which becomes `sem_seg_file_name`.

    Raises:
        FileNotFoundError: the json, the folder of pictures, a PNG or a semantic map is not there.
        CocoFormatError: the json cannot be used; the message names it, the picture and the segment.
    """
    content = read_coco(json_file)
    things, classes = _class_maps(metadata)
    _check_categories(content["categories"], things, classes, json_file)
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"there is no picture folder {image_root!r}, which {json_file} needs; check the path")
    report = CleaningReport(json_file)
    images = _images_by_id(content["images"], json_file)
    annotations = _by_picture(content["annotations"], images, report, json_file)
    records, missing = [], []
    for number, annotation in annotations.items():
        image = images[number]
        file_name = os.path.join(image_root, picture_of(image) if picture_of else image["file_name"])
        if not os.path.isfile(file_name):
            report.note(f"dropped pictures that are missing in {image_root}", file_name)
            continue
        maps = {"pan_seg_file_name": os.path.join(panoptic_root, annotation["file_name"])}
        if label_map_of:
            maps["sem_seg_file_name"] = label_map_of(annotation)
        missing += [path for path in maps.values() if not os.path.isfile(path)]
        where = f"picture {annotation['file_name']} of {json_file}"
        segments = _segments(annotation["segments_info"], things, classes, where)
        sides = {key: as_size(image.get(key)) for key in ("height", "width")}
        record = {"file_name": file_name, "image_id": number, **maps, "segments_info": segments}
        records.append({**record, **sides} if all(sides.values()) else record)
    if missing:
        raise FileNotFoundError(
            f"there is no {missing[0]!r}, which {json_file} needs ({len(missing)} such maps of {len(records)} pictures "
            "are missing); unpack or make them again"
        )
    if not records:
        raise CocoFormatError(f"{json_file} has no usable picture in {image_root}; check the picture folder")
    report.settle(strict=False)
    return records


def _class_maps(metadata: Mapping[str, Any]) -> tuple[set[int], dict[int, int]]:
    """The ids of things, and the contiguous class of every id."""
    things = metadata["thing_dataset_id_to_contiguous_id"]
    return set(things), {**metadata["stuff_dataset_id_to_contiguous_id"], **things}


def _check_categories(categories: list[Record], things: set[int], classes: dict[int, int], json_file: str) -> None:
    """See that the file speaks of the classes of the data set; another numbering would go unnoticed otherwise."""
    for category in categories:
        number = category.get("id")
        if not is_integer(number) or number not in classes:
            raise CocoFormatError(
                f"{json_file} has the category {number!r} ({category.get('name')!r}), which is none of the "
                f"{len(classes)} classes of this data set; is it the json of another, or one with other ids?"
            )
        if "isthing" in category and bool(category["isthing"]) != (number in things):
            said, known = ("a thing", "stuff") if category["isthing"] else ("stuff", "a thing")
            raise CocoFormatError(
                f"{json_file} says that the category {number} ({category.get('name')!r}) is {said}, but in this data "
                f"set {number} is {known}; are its ids other ones?"
            )


def _images_by_id(images: list[Record], json_file: str) -> dict[int | str, Record]:
    found: dict[int | str, Record] = {}
    for index, image in enumerate(images):
        number, name = image.get("id"), image.get("file_name")
        if not (is_integer(number) or isinstance(number, str)) or not isinstance(name, str) or not name:
            raise CocoFormatError(f"picture {index} of {json_file} has no 'id' or no 'file_name'; it needs both")
        if number in found:
            raise CocoFormatError(f"{json_file} has two pictures with the id {number!r}; ids have to differ")
        found[number] = image
    return found


def _by_picture(
    annotations: list[Record], images: dict[int | str, Record], report: CleaningReport, json_file: str
) -> dict[int | str, Record]:
    """Annotations by the ids of their pictures, in the order of the file."""
    found: dict[int | str, Record] = {}
    for index, annotation in enumerate(annotations):
        name, number = annotation.get("file_name"), find_id(images, annotation.get("image_id"))
        where = f"annotation {index} of {json_file}"
        if not isinstance(name, str) or not name:
            raise CocoFormatError(f"{where} has no 'file_name', the PNG of its segments")
        if not isinstance(annotation.get("segments_info"), list):
            raise CocoFormatError(f"{where} ({name}) has no list 'segments_info'; is the file in the panoptic format?")
        if number is None:
            report.note("dropped segments of pictures that are not listed", f"{name}, {annotation.get('image_id')!r}")
        elif number in found:
            raise CocoFormatError(f"{where} ({name}) is the second of the picture {number!r}; there can be one")
        else:
            found[number] = annotation
    for number in (number for number in images if number not in found):
        report.note("left out pictures without segments_info", f"picture {number!r}")
    return found


def _segments(segments: list[Any], things: set[int], classes: dict[int, int], where: str) -> list[Record]:
    """The segments of a picture with `isthing` and contiguous `category_id`."""
    converted, seen = [], set()
    for segment in segments:
        if not isinstance(segment, dict):
            raise CocoFormatError(f"a segment in {where} is {segment!r}, not an object")
        number, category, crowd = (segment.get(key) for key in ("id", "category_id", "iscrowd"))
        if not is_integer(number) or not 0 < number <= MAX_SEGMENT_ID:
            raise CocoFormatError(
                f"a segment in {where} has the id {number!r}; it has to be a number from 1 to {MAX_SEGMENT_ID}"
            )
        if number in seen:
            raise CocoFormatError(f"{where} has two segments with the id {number}; their pixels cannot be told apart")
        if not is_integer(category) or category not in classes:
            raise CocoFormatError(
                f"the segment {number} in {where} has the category {category!r}, which is none of the {len(classes)} "
                "classes of this data set"
            )
        if crowd not in (0, 1, None):
            raise CocoFormatError(f"the segment {number} in {where} has 'iscrowd': {crowd!r}; it is 0 or 1")
        seen.add(number)
        facts = {"category_id": classes[category], "isthing": category in things, "iscrowd": int(crowd or 0)}
        converted.append({**segment, **facts})
    return converted
