"""What a page gives away: the drawing, the record as json, and a COCO file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.web.detection import Answer

PREVIEW_PIXELS = 2000  # of the longer side


def write_downloads(answer: Answer, folder: Path) -> tuple[Path, Path, Path]:
    """Write `<name>_detections.png`, `.json` (as the demo's --json) and `<name>_coco.json` into a folder."""
    from PIL import Image

    stem = safe_stem(answer.name)
    drawing, record, coco = (folder / f"{stem}{end}" for end in ("_detections.png", "_detections.json", "_coco.json"))
    Image.fromarray(answer.drawing).save(drawing, compress_level=3)
    _write(record, [{"file_name": answer.name, **answer.record}])
    _write(coco, coco_of(answer.name, answer.record, answer.names))
    return drawing, record, coco


def write_preview(answer: Answer, folder: Path) -> Path:
    """The drawing as the page shows it, small enough for a telephone."""
    from PIL import Image

    drawing, path = Image.fromarray(answer.preview), folder / "preview.webp"
    drawing.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    drawing.save(path, quality=90)
    return path


def coco_of(name: str, record: dict[str, Any], names: Sequence[str] = ()) -> dict[str, Any]:
    """One picture's record as a COCO data set, with scores.

    Detections become annotations; where there are none of that kind, the segments, and then the semantic classes.

    Args:
        record: of :func:`result_records`, with `width` and `height`.
        names: all categories; those that the record has beyond them (a caption's phrases) follow.
    """
    found = record.get("detections", record.get("segments_info", record.get("sem_seg", [])))
    numbers = {label: i + 1 for i, label in enumerate(dict.fromkeys([*names, *(each["label"] for each in found)]))}
    image = {"id": 1, "file_name": name, "width": record["width"], "height": record["height"]}
    annotations = [{"id": i + 1, "image_id": 1, **_annotation(each, numbers)} for i, each in enumerate(found)]
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": [image], "categories": categories, "annotations": annotations}


def _annotation(found: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    mask = found.get("mask")
    if "box" in found:
        x0, y0, x1, y1 = found["box"]
        bbox = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
    else:
        bbox = coco_mask.toBbox(mask).tolist()
    area = float(coco_mask.area(mask)) if mask is not None else bbox[2] * bbox[3]
    annotation = {"category_id": numbers[found["label"]], "bbox": bbox, "area": round(area, 2), "iscrowd": 0}
    annotation |= {"score": found["score"]} if "score" in found else {}
    return annotation | ({"segmentation": mask} if mask is not None else {})


def safe_stem(name: str) -> str:
    """A file's name without its ending, of letters that every system takes."""
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(name).stem)[:60]
    return stem.strip("_") or "picture"


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
