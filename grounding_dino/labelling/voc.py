"""Pascal VOC's folder: an xml file a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from grounding_dino.labelling.label_folder import whole_folder

Record = dict[str, Any]

_PARTS = ("Annotations", "ImageSets")
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_voc(folder: Path, records: Iterable[Record], names: Sequence[str], root: str) -> int:
    """Write `Annotations/NAME.xml` of every record, and `ImageSets/Main/labelled.txt`, which lists the names.

    Corners are whole pixels counted from 1, the last one inside, as in the challenge's data. Returns the number of
    pictures.
    """
    count = 0
    with whole_folder(folder, _PARTS) as partial:
        (partial / "ImageSets" / "Main").mkdir(parents=True)
        (partial / "Annotations").mkdir()
        with open(partial / "ImageSets" / "Main" / "labelled.txt", "w", encoding="utf-8") as listed:
            for record in records:
                file = partial / "Annotations" / f"{record['label_name']}.xml"
                file.parent.mkdir(parents=True, exist_ok=True)
                tree = ElementTree.ElementTree(_annotation(record, names, root))
                ElementTree.indent(tree)
                tree.write(file, encoding="utf-8")
                listed.write(record["label_name"] + "\n")
                count += 1
    return count


def _annotation(record: Record, names: Sequence[str], root: str) -> ElementTree.Element:
    folder, _, name = record["file_name"].rpartition("/")
    size = {"width": record["width"], "height": record["height"], "depth": 3}
    top = _element("annotation", {"folder": folder, "filename": name})
    if "path" in record["source"]:
        top.append(_element("path", os.path.join(root, record["file_name"])))
    top.append(_element("size", size))
    top.append(_element("segmented", 0))
    for annotation in record["annotations"]:
        fixed = {"pose": "Unspecified", "truncated": 0, "difficult": 0, "score": annotation["score"]}
        box = _box(annotation["bbox"], record["width"], record["height"])
        top.append(_element("object", {"name": names[annotation["category_id"]], **fixed, "bndbox": box}))
    return top


def _box(box: Sequence[float], width: int, height: int) -> dict[str, int]:
    x, y, w, h = box
    xmin, ymin = min(round(x) + 1, width), min(round(y) + 1, height)
    xmax, ymax = max(xmin, min(round(x + w), width)), max(ymin, min(round(y + h), height))
    return {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}


def _element(tag: str, content: Any) -> ElementTree.Element:
    """An element with children, or with text, of which what xml cannot hold is left out."""
    element = ElementTree.Element(tag)
    if isinstance(content, dict):
        element.extend(_element(key, value) for key, value in content.items())
    else:
        element.text = _NOT_XML.sub("", str(content))
    return element
