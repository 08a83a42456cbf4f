"""What the grounding formats have in common: a caption, the character spans of its phrases, and their boxes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.data.datasets.coco_cleaning import CleaningReport, as_size, clean_box, is_integer
from grounding_dino.data.datasets.rows import RowError
from grounding_dino.text.prompt import MAX_TOKENS
from grounding_dino.text.tokenizer import build_tokenizer

from detectron2.structures import BoxMode

Record = dict[str, Any]
Span = tuple[int, int]

_CONTENT_TOKENS = MAX_TOKENS - 3  # beside [CLS], [SEP] and the period that closes every caption


@dataclass
class Region:
    """A phrase by its character spans, and its boxes (XYWH, pixels), as a file gives them.

    `extra` goes into the annotation of each box.
    """

    spans: list[Span]
    boxes: list[Any]
    extra: Record = field(default_factory=dict)


def picture_facts(row: Record, image_root: str) -> Record:
    """`file_name`, `image_id`, `height` and `width` of a row, which may write them as text.

    Raises:
        RowError: it lacks one of them, but for the id, for which the name stands in.
    """
    name = row.get("file_name", row.get("filename"))
    if not isinstance(name, str) or not name.strip():
        raise RowError("a picture without a file name", f"{name!r}")
    height, width = (as_size(row.get(key)) for key in ("height", "width"))
    if not height or not width:
        raise RowError("a picture without a size", f"{name}: height {row.get('height')!r}, width {row.get('width')!r}")
    number = row.get("image_id")
    return {
        "file_name": os.path.join(image_root, name),
        "image_id": number if is_integer(number) or isinstance(number, str) else name,
        "height": height,
        "width": width,
    }


def caption_record(
    facts: Record,
    caption: object,
    regions: Sequence[Region],
    report: CleaningReport | None = None,
    phrases: Sequence[object] = (),
) -> Record:
    """A record of a caption: `phrases` holds the spans of each phrase, `category_id` of an annotation indexes them.

    Regions with the same spans are one phrase; annotations keep the order of the file. Unusable boxes are dropped, and
    a phrase goes with its last one. A caption longer than a prompt is cut between words, with the phrases beyond.
    Without any region the record says that nothing in the caption is to be found.

    Args:
        facts: of the picture, see :func:`picture_facts`.
        report: counts the repairs.
        phrases: spans of phrases that come first, in this order, whether they have a box or not.

    Raises:
        RowError: no caption, a span that is none of its words, or regions without a usable box.
    """
    report = CleaningReport("") if report is None else report
    if not isinstance(caption, str) or not any(map(str.isalnum, caption)):
        raise RowError("an empty caption", f"{facts['file_name']}: {caption!r}")
    regions = [Region(check_spans(region.spans, caption), region.boxes, region.extra) for region in regions]
    listed = [Region(check_spans(spans, caption), []) for spans in phrases]
    caption, kept = _fit(caption, [*listed, *regions], facts, report)
    places: dict[tuple[Span, ...], int] = {}
    annotations = []
    for region in kept:
        spans, example = tuple(region.spans), _example(facts, caption, region.spans)
        boxes = [clean_box({"bbox": box}, facts, example, report) for box in region.boxes]
        usable = [cleaned["bbox"] for cleaned in boxes if cleaned is not None]
        if usable or not region.boxes:
            place = places.setdefault(spans, len(places))
            fixed = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": place, "iscrowd": 0, **region.extra}
            annotations += [{"bbox": box, **fixed} for box in usable]
    if not annotations and any(region.boxes for region in regions):
        raise RowError("no phrase with a usable box", f"{facts['file_name']}: {caption[:80]!r}")
    return {**facts, "caption": caption, "phrases": [list(spans) for spans in places], "annotations": annotations}


def check_spans(spans: object, caption: str) -> list[Span]:
    """The character spans of a phrase in their order, given as a list of pairs or as one pair.

    Raises:
        RowError: no span, no pair, a span outside the caption, or one without a letter or digit.
    """
    pairs = [spans] if _is_pair(spans) else spans
    if not isinstance(pairs, (list, tuple)) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise RowError("spans that are no pairs of whole numbers", f"{spans!r} of {caption[:80]!r}")
    for start, stop in pairs:
        if not 0 <= start < stop <= len(caption):
            raise RowError("a span outside its caption", f"[{start}, {stop}] of {caption[:80]!r} ({len(caption)})")
        if not any(map(str.isalnum, caption[start:stop])):
            raise RowError("a span without a word", f"[{start}, {stop}] of {caption[:80]!r}")
    return sorted({(start, stop) for start, stop in pairs})


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(is_integer(number) for number in value)


def find_phrase(phrase: object, caption: str) -> list[Span]:
    """Where a phrase, or each part of one, stands in the caption: the first place where whole words match.

    Case and the width of white space do not matter. A later part is looked for behind the one before it, and
    from the beginning if it is not there.

    Raises:
        RowError: no text, or it is not in the caption.
    """
    parts = [phrase] if isinstance(phrase, str) else phrase
    if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(part, str) for part in parts):
        raise RowError("a region without tokens_positive and phrase", f"phrase {phrase!r} of {caption[:80]!r}")
    spans: list[Span] = []
    for part in parts:
        words = r"\s+".join(re.escape(word) for word in part.split())
        pattern = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
        match = (pattern.search(caption, spans[-1][1] if spans else 0) or pattern.search(caption)) if words else None
        if match is None:
            raise RowError("a phrase that is not in its caption", f"{part!r} of {caption[:80]!r}")
        spans.append(match.span())
    return spans


def _fit(
    caption: str, regions: Sequence[Region], facts: Record, report: CleaningReport
) -> tuple[str, Sequence[Region]]:
    """Caption and regions within the tokens of a prompt."""
    if caption.isascii() and len(caption) <= _CONTENT_TOKENS:  # a token has at least one character, outside of Hangul
        return caption, regions
    offsets = build_tokenizer().encode(caption).offsets[1:-1]
    if len(offsets) <= _CONTENT_TOKENS + caption.rstrip().endswith("."):
        return caption, regions
    end = offsets[_CONTENT_TOKENS][0]
    if not caption[end - 1].isspace():
        end = caption.rfind(" ", 0, end) + 1 or end
    report.note(f"cut captions of more than {MAX_TOKENS} tokens", f"{facts['file_name']}, {caption[:80]!r}")
    return caption[:end], list(_inside(regions, caption[:end], facts, report))


def _inside(regions: Sequence[Region], caption: str, facts: Record, report: CleaningReport) -> Iterator[Region]:
    for region in regions:
        spans = [span for span in region.spans if span[1] <= len(caption)]
        if spans:
            yield Region(spans, region.boxes, region.extra)
        else:
            report.note("dropped phrases beyond the cut of their caption", _example(facts, caption, region.spans))


def _example(facts: Record, caption: str, spans: Sequence[Span]) -> str:
    words = " ".join(caption[start:stop] for start, stop in spans)
    return f"{words[:80]!r} in {facts['file_name']}"
