"""Writing annotation files: rows one by one, and json whose two lists grow without being held in memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from grounding_dino.data.convert.sources import OBJECT_KEYS, PICTURE_ID_KEYS, SENTENCE_KEYS
from grounding_dino.data.convert.texts import NameSentences, phrase_names
from grounding_dino.text.names import normalised_name
from grounding_dino.whole_file import whole_file

Record = dict[str, Any]

_DECIMALS = 6  # of pixels: corner plus size and back gives the same number then


def label_map_path(path: str) -> str:
    """Where the label map of an ODVG file lies, and is looked for."""
    return f"{os.path.splitext(path)[0]}_label_map.json"


def write_odvg(path: str, records: Iterable[Record], names: Sequence[str], mode: str, lost: Counter[str]) -> int:
    """Rows of detection (with a label map beside them) or of grounding; returns their number."""
    count, detection = 0, False
    with whole_file(path) as file:
        for record in records:
            detection |= "caption" not in record
            row = _grounding_row(record, lost) if "caption" in record else _detection_row(record, names)
            file.write(_compact(row) + "\n")
            count += 1
    if detection:
        with whole_file(label_map_path(path)) as file:
            file.write(_compact({str(label): name for label, name in enumerate(names)}))
    return count


def write_coco(path: str, records: Iterable[Record], names: Sequence[str], mode: str, lost: Counter[str]) -> int:
    """COCO's json; the classes of captions are their different phrases, behind `names`. Returns the number of
    pictures."""
    count, ids = 0, _Ids()
    annotation_ids, categories = _Ids(), list(names)
    with _TwoLists(path) as file:
        for record in _by_picture(records, categories, lost):
            number = ids.own(record["image_id"])
            file.image({"id": number, **_picture(record)})
            for annotation in record["annotations"]:
                boxed = _boxed(annotation, number, annotation_ids)
                file.annotation({**boxed, "category_id": annotation["category_id"] + 1})
            count += 1
        file.end(categories=[{"id": index, "name": name} for index, name in enumerate(categories, 1)])
    return count


def write_mdetr(path: str, records: Iterable[Record], names: Sequence[str], mode: str, lost: Counter[str]) -> int:
    """MDETR's json; class names become sentences (see NameSentences). Returns the number of sentences."""
    count, ids, annotation_ids = 0, _Ids(), _Ids()
    sentences_of = NameSentences(names, mode) if names else None
    with _TwoLists(path) as file:
        for record in records:
            if "caption" not in record:
                assert sentences_of is not None
                sentences = list(sentences_of(record))
                if not sentences:
                    lost["pictures without an object, of which no name is listed"] += 1
            else:
                sentences = [record]
            for sentence in sentences:
                number = ids.own(sentence["image_id"])
                spans = [[list(span) for span in phrase] for phrase in sentence["phrases"]]
                file.image(_mdetr_sentence(number, sentence, spans))
                for annotation in sentence["annotations"]:
                    boxed = _boxed(annotation, number, annotation_ids)
                    file.annotation({**boxed, "category_id": 1, "tokens_positive": spans[annotation["category_id"]]})
                count += 1
        file.end(categories=[{"id": 1, "name": "object"}])
    return count


def write_refexp(path: str, records: Iterable[Record], names: Sequence[str], mode: str, lost: Counter[str]) -> int:
    """Our json of referring expressions, one box each; returns the number of expressions."""
    expressions: list[Record] = []
    images: dict[str, Record] = {}
    ids, image_ids = _Ids(), _Ids()
    for record in records:
        if len(record["annotations"]) != 1:
            lost["sentences that do not name exactly one box"] += 1
            continue
        name = record["file_name"]
        if name not in images:
            images[name] = {"id": image_ids.own(_picture_id(record)), **_picture(record)}
        (annotation,) = record["annotations"]
        number = ids.own(record["image_id"])
        own = {"caption": record["caption"], "bbox": _rounded(annotation["bbox"])}
        expressions.append({"id": number, "image_id": images[name]["id"], **own})
    with whole_file(path) as file:
        file.write(_compact({"images": list(images.values()), "expressions": expressions}))
    return len(expressions)


# Format -> (path, records, class names, which names sentences list, what got lost) -> number of entries written.
TARGETS: dict[str, Callable[[str, Iterable[Record], Sequence[str], str, Counter[str]], int]] = {
    "coco": write_coco,
    "odvg": write_odvg,
    "mdetr": write_mdetr,
    "refexp": write_refexp,
}


# ------------------------------------------------------------------------------------------------------- entries


def _picture(record: Record) -> Record:
    return {key: record[key] for key in ("file_name", "height", "width")}


def _picture_id(record: Record) -> object:
    """The picture's id, where `image_id` is a sentence's."""
    own = (record.get(key) for key in PICTURE_ID_KEYS)
    return next((number for number in own if isinstance(number, (int, str))), record["image_id"])


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, _DECIMALS) for value in box]


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return _rounded([x, y, x + width, y + height])


def _detection_row(record: Record, names: Sequence[str]) -> Record:
    instances = []
    for annotation in record["annotations"]:
        label = annotation["category_id"]
        instance = {"bbox": _corners(annotation["bbox"]), "label": label, "category": names[label]}
        # Keys of COCO that other readers of ODVG pass over
        extra: Record = {key: annotation[key] for key in OBJECT_KEYS if key in annotation}
        instances.append({**instance, **extra, **({"iscrowd": 1} if annotation["iscrowd"] else {})})
    return {**_odvg_facts(record), "detection": {"instances": instances}}


def _grounding_row(record: Record, lost: Counter[str]) -> Record:
    caption, boxes = record["caption"], [list[Any]() for _ in record["phrases"]]
    for annotation in record["annotations"]:
        if annotation["iscrowd"]:
            lost["crowd boxes, which grounding rows cannot mark"] += 1
        else:
            boxes[annotation["category_id"]].append(_corners(annotation["bbox"]))
            if "segmentation" in annotation:
                lost["masks, which grounding rows do not have (their boxes stay)"] += 1
    regions = []
    for spans, found in zip(record["phrases"], boxes):
        words = [caption[start:stop] for start, stop in spans]
        phrase = {"phrase": words[0] if len(words) == 1 else words, "tokens_positive": [list(span) for span in spans]}
        if found:
            regions.append({"bbox": found[0] if len(found) == 1 else found, **phrase})
        else:
            lost["phrases without a box, which grounding rows do not list"] += 1
    kept: Record = {key: record[key] for key in SENTENCE_KEYS if key in record}
    return {**_odvg_facts(record), **kept, "grounding": {"caption": caption, "regions": regions}}


def _odvg_facts(record: Record) -> Record:
    return {"filename": record["file_name"], **{key: record[key] for key in ("height", "width", "image_id")}}


def _mdetr_sentence(number: int | str, record: Record, spans: list[list[list[int]]]) -> Record:
    return {
        **{"id": number, **_picture(record), "caption": record["caption"], "original_img_id": _picture_id(record)},
        **{"tokens_negative": [[0, len(record["caption"])]], "tokens_positive_eval": spans},
        "dataset_name": record.get("dataset_name", "mixed"),
    }


def _boxed(annotation: Record, image_id: int | str, ids: _Ids) -> Record:
    box = _rounded(annotation["bbox"])
    extra: Record = {key: annotation[key] for key in ("segmentation", "score") if key in annotation}
    return {
        **{"id": ids.own(annotation.get("id")), "image_id": image_id, "bbox": box},
        **{
            "area": annotation.get("area", round(box[2] * box[3], _DECIMALS)),
            "iscrowd": annotation["iscrowd"],
            **extra,
        },
    }


def _by_picture(records: Iterable[Record], categories: list[str], lost: Counter[str]) -> Iterator[Record]:
    """Records of class names as they come; those of captions put together by their pictures, at the end.

    `categories` gets the phrases that are none of its names. A box that several sentences of a picture give the same
    phrase is one object.
    """
    pictures: dict[str, Record] = {}
    places = {normalised_name(name): place for place, name in reversed(list(enumerate(categories)))}
    boxes: dict[str, set[tuple[Any, ...]]] = {}
    for record in records:
        if "caption" not in record:
            yield record
            continue
        names, file_name = phrase_names(record), record["file_name"]
        for name in names:
            if name not in places:
                places[name] = len(categories)
                categories.append(name)
        own = {"image_id": _picture_id(record), "annotations": []}
        picture = pictures.setdefault(file_name, {**_picture(record), **own})
        for annotation in record["annotations"]:
            place = places[names[annotation["category_id"]]]
            key = (place, *_rounded(annotation["bbox"]))
            if key in boxes.setdefault(file_name, set()):
                lost["boxes that several sentences of a picture give the same phrase, counted once each"] += 1
            else:
                boxes[file_name].add(key)
                picture["annotations"].append({**annotation, "category_id": place})
    yield from pictures.values()


class _Ids:
    """Ids that differ: an entry's own, or where it has none or another has it, the next free number.

    Numbers that come in order take no memory.
    """

    def __init__(self) -> None:
        self._taken: set[int | str] = set()
        self._low = 0  # all from 1 to here are taken, and not in the set

    def own(self, number: object) -> int | str:
        if isinstance(number, bool) or not isinstance(number, (int, str)) or self._is_taken(number):
            number = self._low + 1
        self._taken.add(number)
        while self._low + 1 in self._taken:
            self._low += 1
            self._taken.remove(self._low)
        return number

    def _is_taken(self, number: int | str) -> bool:
        return number in self._taken or (isinstance(number, int) and 1 <= number <= self._low)


# --------------------------------------------------------------------------------------------------------- files


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class _TwoLists(contextlib.ExitStack):
    """Json of `images` and `annotations`, written as they come: the second list waits in a file of its own."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._images = self._annotations = 0

    def __enter__(self) -> _TwoLists:
        super().__enter__()
        self._file = self.enter_context(whole_file(self._path))
        folder = os.path.dirname(self._path) or "."
        self._second = self.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder))
        self._file.write('{"images":[')
        return self

    def image(self, entry: Record) -> None:
        self._file.write((",\n" if self._images else "\n") + _compact(entry))
        self._images += 1

    def annotation(self, entry: Record) -> None:
        self._second.write((",\n" if self._annotations else "\n") + _compact(entry))
        self._annotations += 1

    def end(self, **more: object) -> None:
        """Put the second list behind the first, and `more` behind both."""
        self._second.seek(0)
        self._file.write('],\n"annotations":[')
        shutil.copyfileobj(self._second, self._file, 1 << 20)
        self._file.write("]")
        for key, value in more.items():
            self._file.write(f",\n{_compact(key)}:{_compact(value)}")
        self._file.write("}\n")
