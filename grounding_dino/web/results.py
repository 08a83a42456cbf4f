"""What was found, as the HTML of the page: a line of summary, a table, messages. All texts of users are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from grounding_dino.web.detection import Answer

MAX_ROWS = 300
_TEMPLATE_LETTERS = {ord(letter): f"&#{ord(letter)};" for letter in "${}`\\"}  # Gradio fills templates in at these


def escaped(text: str) -> str:
    """A text that is shown as it is, in Gradio's templates too."""
    return html.escape(text).translate(_TEMPLATE_LETTERS)


def message_html(text: str, kind: str = "error") -> str:
    """A sentence for the user: an "error", or a "hint"."""
    return f'<p class="message {kind}" role="{"alert" if kind == "error" else "status"}">{escaped(text)}</p>'


def summary_html(answer: Answer) -> str:
    """How many of what, in what time."""
    record = answer.record
    parts = [
        _counted(len(record[key]), noun)
        for key, noun in (("detections", "detection"), ("segments_info", "segment"), ("sem_seg", "class"))
        if key in record and not (key == "sem_seg" and "segments_info" in record)
    ]
    what = ", ".join(parts) or "nothing"
    facts = f"{escaped(answer.model)}, {answer.seconds:.2f} s, {record['width']} × {record['height']} pixels"
    hint = ""
    if not any(record.get(key) for key in ("detections", "segments_info", "sem_seg")):
        hint = " Lower the box threshold, or try other words."
    return f'<p class="message found" role="status"><strong>{what}</strong><span>{facts}</span>{hint}</p>'


def table_html(record: dict[str, Any]) -> str:
    """The detections, best first, and the segments, or semantic classes where there are no segments."""
    tables = []
    if record.get("detections"):
        tables.append(_detections(record["detections"]))
    pixels = record["width"] * record["height"]
    if record.get("segments_info"):
        found = record["segments_info"]
        kinds = ["thing" if each["isthing"] else "stuff" for each in found]
        tables.append(_areas("Segments", found, pixels, ["Kind"], [[kind] for kind in kinds]))
    elif record.get("sem_seg"):
        tables.append(_areas("Classes", record["sem_seg"], pixels, [], [[] for _ in record["sem_seg"]]))
    return "".join(tables)


def _detections(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        [_named(each), _score(each["score"]), *(f"{value:.0f}" for value in each["box"])] for each in found[:MAX_ROWS]
    ]
    return _table("Detections", ["Name", "Score", "Left", "Top", "Right", "Bottom"], rows, len(found))


def _areas(
    title: str, found: Sequence[dict[str, Any]], pixels: int, more: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
    rows = [[_named(each), *extra, f"{each['area'] / pixels:.1%}"] for each, extra in zip(found[:MAX_ROWS], cells)]
    return _table(title, ["Name", *more, "Share"], rows, len(found))


def _named(each: dict[str, Any]) -> str:
    """A name behind the colour that it has in the drawing."""
    from grounding_dino.visualization import color_of

    red, green, blue = (round(255 * float(part)) for part in color_of(each.get("category", each["label"])))
    swatch = f'<span class="swatch" style="background: rgb({red}, {green}, {blue})" aria-hidden="true"></span>'
    return swatch + escaped(each["label"])


def _score(score: float) -> str:
    return f'<span class="score" style="--share: {score:.2f}">{score:.2f}</span>'


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    unit = ", in pixels" if "Left" in head else ""
    more = f'<p class="more">The first {len(rows)} of {total}; the files have all.</p>' if total > len(rows) else ""
    return (
        f'<div class="table" role="region" aria-label="{title}" tabindex="0"><table>'
        f"<caption>{title}{unit}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )


def _counted(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
