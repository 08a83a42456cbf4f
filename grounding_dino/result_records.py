"""What a predictor found, as plain numbers and strings for --json, and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from grounding_dino.tables import format_table

if TYPE_CHECKING:
    from detectron2.structures import Instances

Record = dict[str, Any]


def result_records(found: Instances | Mapping[str, Any], masks: bool = True) -> dict[str, list[Record]]:
    """A picture's results by kind, of those that the predictor gives.

    Args:
        masks: with the masks, as COCO's compressed run lengths.

    Returns:
        `detections`, best first: `label`, `score`, `box` XYXY in pixels, the index `category`, the number `track` in a
        video whose objects are followed, `mask`; `segments_info` (panoptic): `id`, `label`, `category`, `isthing`,
        `area` in pixels, `mask`; `sem_seg`, the classes that are the best somewhere, the largest first: `label`,
        `category`, `area`, `mask`.
    """
    if not isinstance(found, Mapping):
        return {"detections": detection_records(found, masks)}
    records = {}
    if "instances" in found:
        records["detections"] = detection_records(found["instances"], masks)
    if "panoptic_seg" in found:
        ids, segments_info = found["panoptic_seg"]
        records["segments_info"] = list(_segments(ids, segments_info, found["class_names"], masks))
    if "sem_seg" in found:
        records["sem_seg"] = sorted(_classes(found["sem_seg"], found["class_names"], masks), key=lambda r: -r["area"])
    return records


def detection_records(found: Instances, masks: bool = True) -> list[Record]:
    """The detections alone; see :func:`result_records`."""
    from grounding_dino.visualization import names_of

    records: list[Record] = [
        {"label": name, "score": round(score, 4), "box": [round(value, 2) for value in box]}
        for name, score, box in zip(names_of(found), found.scores.tolist(), found.pred_boxes.tensor.tolist())
    ]
    if found.has("pred_classes"):
        for record, index in zip(records, found.pred_classes.tolist()):
            record["category"] = index
    if found.has("track_ids"):
        for record, number in zip(records, found.track_ids.tolist()):
            record["track"] = number
    if masks and found.has("pred_masks"):
        for record, mask in zip(records, found.pred_masks):  # one at a time: they may be many and large
            record["mask"] = _run_lengths(mask)
    elif masks and found.has("pred_masks_rle"):
        for record, encoded in zip(records, found.pred_masks_rle):
            record["mask"] = encoded
    return records


def _segments(ids: Any, segments_info: list[Record], names: list[str], masks: bool) -> Iterator[Record]:
    for segment in segments_info:
        mask, category = ids == segment["id"], segment["category_id"]
        record = {"id": segment["id"], "label": names[category], "category": category, "isthing": segment["isthing"]}
        yield {**record, **_extent(mask, masks)}


def _classes(scores: Any, names: list[str], masks: bool) -> Iterator[Record]:
    best = scores.argmax(dim=0)
    for category in best.unique().tolist():
        yield {"label": names[category], "category": category, **_extent(best == category, masks)}


def _extent(mask: Any, with_mask: bool) -> Record:
    area = {"area": int(mask.sum())}
    return {**area, "mask": _run_lengths(mask)} if with_mask else area


def _run_lengths(mask: Any) -> Record:
    from grounding_dino.structures import RleMasks

    encoded: Record = RleMasks.encode(mask[None])[0]
    return encoded


def result_text(path: str, records: Mapping[str, list[Record]], size: tuple[int, int]) -> str:
    """The tables of one picture under its name: detections, segments, and where there are no segments, classes.

    Args:
        records: of :func:`result_records`.
        size: (height, width) of the picture.
    """
    counts, tables = [], []
    if "detections" in records:
        found = records["detections"]
        counts.append(_counted(len(found), "detection"))
        rows = [[r["label"], f"{r['score']:.2f}", *(f"{value:.0f}" for value in r["box"])] for r in found]
        tables += [format_table(["label", "score", "x0", "y0", "x1", "y1"], rows)] if rows else []
    pixels = size[0] * size[1]
    if "segments_info" in records:
        segments = records["segments_info"]
        counts.append(_counted(len(segments), "segment"))
        rows = [[r["label"], "thing" if r["isthing"] else "stuff", f"{r['area'] / pixels:.1%}"] for r in segments]
        tables += [format_table(["segment", "kind", "share"], rows)] if rows else []
    elif "sem_seg" in records:
        classes = records["sem_seg"]
        counts.append(f"{len(classes)} class{'es' * (len(classes) != 1)}")
        tables.append(format_table(["class", "share"], [[r["label"], f"{r['area'] / pixels:.1%}"] for r in classes]))
    return "\n".join([f"{path}: {', '.join(counts)}", *tables])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
