"""Annotation files from COCO, ODVG, MDETR and referring expressions into each other."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.data.convert.sources import SOURCES, Source
from grounding_dino.data.convert.targets import TARGETS
from grounding_dino.data.convert_formats import FORMATS, NAME_MODES

from tqdm import tqdm

logger = logging.getLogger(__name__)

__all__ = ["FORMATS", "NAME_MODES", "Conversion", "convert"]


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        entries: pictures, rows or sentences written.
        lost: what the target format could not take, with counts.
    """

    entries: int = 0
    lost: Counter[str] = field(default_factory=Counter)


def convert(
    source: str,
    output: str,
    from_format: str,
    to_format: str,
    *,
    images: str | None = None,
    label_map: str | None = None,
    names: str = "auto",
    strict: bool = False,
    progress: bool = False,
) -> Conversion:
    """Write the annotations in `source` to `output` in another format.

    Kept are image ids, boxes (to a millionth of a pixel), crowd flags, masks and annotation ids where both formats have
    them, and the spans of phrases. What gets lost is counted in the result, and logged. ODVG is read and written row
    by row; the json formats are read whole, and written as they come.

    Args:
        images: leave out pictures that are not in this folder.
        label_map: of ODVG rows; without it, the one beside them or what they say themselves.
        names: which class names sentences list, see `texts.NameSentences`.
        strict: refuse a file with an entry that is not in order, instead of counting it.
        progress: show a bar.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an unknown pair of formats, a file that cannot be used, `output` is `source`, or nothing to write.
    """
    for name in (from_format, to_format):
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
    if from_format == to_format:
        raise ValueError(f"both formats are {to_format}; there is nothing to convert")
    if names not in NAME_MODES:
        raise ValueError(f"unknown choice of names {names!r}; choose from {', '.join(NAME_MODES)}")
    if label_map is not None and from_format != "odvg":
        raise ValueError(f"a label map ({label_map}) belongs to ODVG rows; {from_format} has its names in the file")
    if images is not None and not os.path.isdir(images):
        raise FileNotFoundError(f"there is no picture folder {images!r}; check the path")
    if os.path.exists(output) and os.path.exists(source) and os.path.samefile(source, output):
        raise ValueError(f"{output!r} is the file to convert itself; give OUTPUT another name, so that it stays")
    content = SOURCES[from_format](source, images, label_map, strict)
    result = Conversion()
    if to_format == "refexp" and content.names:
        raise ValueError(f"{source} has class names, which are no referring expressions; only captions become refexp")
    records = _with_pictures(content, images, result.lost)
    with tqdm(records, total=content.total, unit=" records", disable=not progress) as bar:
        result.entries = TARGETS[to_format](output, _at_least_one(bar, source), content.names, names, result.lost)
    for what, count in result.lost.items():
        logger.warning("%s: %d %s", source, count, what)
    return result


def _with_pictures(content: Source, images: str | None, lost: Counter[str]) -> Iterator[dict[str, Any]]:
    for record in content.records:
        if images is None or os.path.isfile(os.path.join(images, record["file_name"])):
            yield record
        else:
            lost["pictures that are not in the folder"] += 1


def _at_least_one(records: Iterator[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """
    Raises:
        ValueError: there is none. Raised inside of the writing, so that no empty file stays.
    """
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise ValueError(f"{source} yields nothing to convert; the warnings above say why")
