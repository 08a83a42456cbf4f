"""Reading annotation files for conversion: records as the data sets give them, with what other formats want to know.

A record has `file_name` (relative, as in the file), `image_id`, `height`, `width`, `annotations` (`bbox` XYWH,
`category_id`, `iscrowd`, and where the format has them `id`, `area`, `segmentation`), and of captions `caption` and
`phrases`, perhaps `original_img_id` (the picture's, where `image_id` is the sentence's) and `dataset_name`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import clean_coco, read_coco
from grounding_dino.data.datasets.mdetr import grounding_records
from grounding_dino.data.datasets.odvg import OdvgReader, odvg_names
from grounding_dino.data.datasets.refexp_json import load_refexp
from grounding_dino.data.datasets.register_coco_sets import is_objects365_v2, objects365_v2_images
from grounding_dino.data.datasets.rows import RowError, RowReport, json_line_files, read_json_lines

Record = dict[str, Any]

OBJECT_KEYS = ("id", "area", "segmentation", "score")
PICTURE_ID_KEYS = ("original_img_id", "original_id")  # Flickr30k's and GQA's
SENTENCE_KEYS = (*PICTURE_ID_KEYS, "dataset_name")


@dataclass
class Source:
    """What a file holds.

    Attributes:
        records: read while they are consumed; at their end what was wrong is said, or raised.
        names: class names that `category_id` indexes in records without a caption.
        total: number of records, where it is known before.
    """

    records: Iterator[Record]
    names: list[str]
    total: int | None = None


def coco_source(path: str, image_root: str | None, label_map: str | None, strict: bool) -> Source:
    """A COCO json; it is held in memory as a whole. Pictures of Objects365 v2 are named as its archives unpack.

    Raises:
        CocoFormatError: it cannot be used, or with `strict` needs repairs.
    """
    content = read_coco(path)
    content = objects365_v2_images(content) if is_objects365_v2(content) else content
    content, report = clean_coco(content, path, image_root)
    report.settle(strict)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    objects: dict[Any, list[Record]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        kept = {key: annotation[key] for key in ("bbox", "iscrowd", *OBJECT_KEYS) if key in annotation}
        objects[annotation["image_id"]].append({**kept, "category_id": contiguous[annotation["category_id"]]})
    records = (
        {
            **{key: image[key] for key in ("file_name", "height", "width")},
            **{"image_id": image["id"], "annotations": objects[image["id"]]},
        }
        for image in content["images"]
    )
    return Source(records, [category["name"] for category in categories], len(content["images"]))


def odvg_source(path: str, image_root: str | None, label_map: str | None, strict: bool) -> Source:
    """A file or folder of ODVG rows, read row by row.

    Raises:
        RowError: the label map or the labels cannot be used; while reading, with `strict`, a row that cannot.
    """
    report = RowReport(path)
    reader = OdvgReader("", odvg_names(path, label_map, report), OBJECT_KEYS)

    def records() -> Iterator[Record]:
        for file in json_line_files(path):
            for _, row in read_json_lines(file, report):
                try:
                    yield {**{key: row[key] for key in SENTENCE_KEYS if key in row}, **reader(row, report)}
                except RowError as error:
                    report.skip(error)
        report.settle(strict)

    return Source(records(), reader.class_names)


def mdetr_source(path: str, image_root: str | None, label_map: str | None, strict: bool) -> Source:
    """An MDETR json, sentence by sentence; it is held in memory as a whole.

    Raises:
        CocoFormatError: it is no such file.
    """
    content, report = read_coco(path), RowReport(path)

    def records() -> Iterator[Record]:
        yield from grounding_records(content, "", report, SENTENCE_KEYS, OBJECT_KEYS)
        report.settle(strict)

    return Source(records(), [], len(content["images"]))


def refexp_source(path: str, image_root: str | None, label_map: str | None, strict: bool) -> Source:
    """Referring expressions, ours or MDETR's: each is a caption that is one phrase.

    Raises:
        CocoFormatError: it is no such file.
    """
    found = load_refexp(path, None)
    return Source(map(_as_sentence, found), [], len(found))


def _as_sentence(record: Record) -> Record:
    (caption,), (number,) = record["categories"], record["expression_ids"]
    facts = {key: record[key] for key in ("file_name", "height", "width", "annotations")}
    own = {"image_id": number, "original_img_id": record["image_id"], "dataset_name": "refexp"}
    return {**facts, **own, "caption": caption, "phrases": [[(0, len(caption))]]}


# Format -> (path, folder of pictures or None, label map or None, strict) -> what is in it.
SOURCES: dict[str, Callable[[str, str | None, str | None, bool], Source]] = {
    "coco": coco_source,
    "odvg": odvg_source,
    "mdetr": mdetr_source,
    "refexp": refexp_source,
}
