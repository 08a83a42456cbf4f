"""What a worker does: pictures of a task in, one record each out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from grounding_dino.labelling.journal import Record
from grounding_dino.labelling.plan import Entry
from grounding_dino.labelling.reading import PictureReader
from grounding_dino.labelling.settings import DETECTIONS_ALONE, LabelSettings
from grounding_dino.labelling.tiles import Detection, Tile, class_wise_nms, moved, tiles_of, without_pieces
from grounding_dino.labelling.words import KINDS, Words
from grounding_dino.picture_batches import PictureBatches
from grounding_dino.pictures import RgbArray
from grounding_dino.predictor import GroundingPredictor, load_predictor
from grounding_dino.result_records import detection_records

logger = logging.getLogger(__name__)

_READERS = 2  # threads that read and resize while the model runs


@dataclass(frozen=True)
class Task:
    """Neighbours in the list that are labelled together.

    Batches are formed of all of them, so that a picture's batch, and the rounding of its scores, are the same in every
    run; `wanted` are the numbers of those whose records are asked for.
    """

    entries: tuple[Entry, ...]
    wanted: frozenset[int]


class Labeller:
    """Labels tasks with a model of its own."""

    def __init__(self, settings: LabelSettings, predictor: GroundingPredictor | None = None) -> None:
        """
        Args:
            predictor: given, it is used instead of the one of the settings.

        Raises:
            ValueError, OSError: of `load_predictor`.
        """
        self._settings = settings
        if predictor is None:
            opts = [*DETECTIONS_ALONE, *settings.opts]
            predictor = load_predictor(settings.config, settings.weights, settings.device, opts)
        self._predictor = predictor
        if settings.words or settings.not_wanted:
            predictor.check_prompt(**settings.words, **settings.rivals())
        self._read = PictureReader()
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self._ahead: dict[int, Future[Any]] = {}

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names that a model of fixed classes finds."""
        return self._predictor.classes

    def __call__(self, task: Task, ahead: Task | None = None) -> list[Record]:
        """The records of the pictures that the task wants, in order. While the model runs, `ahead` is read."""
        label = self._label_in_tiles if self._settings.tile_size else self._label_in_batches
        records = {record["number"]: record for record in label(task, ahead)}
        return [records[number] for number in sorted(records) if number in task.wanted]

    # ------------------------------------------------------------------------------------------- whole pictures

    def _label_in_batches(self, task: Task, ahead: Task | None) -> Iterator[Record]:
        reads = {entry["number"]: self._begin(entry, self._prepared) for entry in task.entries}
        for entry in ahead.entries if ahead else ():
            self._begin(entry, self._prepared)
        groups: dict[str, PictureBatches] = {}  # by the kind of words: a call takes one kind
        inputs: dict[int, tuple[Entry, Any]] = {}
        complete: list[list[int]] = []
        for entry in task.entries:
            try:
                words = self._words(entry)
                prepared = reads[entry["number"]].result()
            except Exception as error:  # decoders raise many types on broken files
                yield _failure(entry, error)
                continue
            finally:
                self._ahead.pop(entry["number"], None)
            inputs[entry["number"]] = entry, prepared
            batches = groups.setdefault(next(iter(words), ""), self._new_batches())
            height, width = prepared["image"].shape[-2:]
            complete += batches.add(entry["number"], (height, width))
        for batches in groups.values():
            complete += batches.rest()
        for numbers in complete:
            if task.wanted.intersection(numbers):
                yield from self._label_batch([inputs[number] for number in numbers])

    def _label_batch(self, batch: Sequence[tuple[Entry, Any]]) -> Iterator[Record]:
        """Where a batch fails, its pictures are tried one by one."""
        entries, inputs = zip(*batch)
        try:
            found = self._detect(inputs, [self._words(entry) for entry in entries])
        except Exception as error:  # whatever one picture does to the model, the others are to be done
            logger.debug("%s failed", [entry["file_name"] for entry in entries], exc_info=True)
            if len(batch) == 1:
                yield _failure(entries[0], error)
                return
            found = None
        if found is None:  # behind the handler, which holds what the batch had in memory
            for one in batch:
                yield from self._label_batch([one])
            return
        for entry, prepared, detections in zip(entries, inputs, found):
            chosen = class_wise_nms(detections, self._settings.nms)
            yield _record(entry, prepared["height"], prepared["width"], chosen)

    def _prepared(self, entry: Entry) -> dict[str, Any]:
        return self._predictor.prepare(self._read(entry))

    def _new_batches(self) -> PictureBatches:
        padding = not getattr(self._predictor.model, "pad_before_backbone", False)
        return PictureBatches(self._settings.batch_size, padding)

    # ------------------------------------------------------------------------------------------------- in tiles

    def _label_in_tiles(self, task: Task, ahead: Task | None) -> Iterator[Record]:
        """Picture by picture; the next one is read meanwhile."""
        following = [*task.entries[1:], *(ahead.entries[:1] if ahead else ())]
        for place, entry in enumerate(task.entries):
            reading = self._begin(entry, self._read)
            if place < len(following):
                self._begin(following[place], self._read)
            try:
                words = self._words(entry)
                picture = reading.result()
                height, width = picture.shape[:2]
                yield _record(entry, height, width, self._found_in_tiles(picture, words))
            except Exception as error:  # decoders raise many types on broken files, and models on odd sizes
                logger.debug("%s failed", entry["file_name"], exc_info=True)
                yield _failure(entry, error)
            finally:
                self._ahead.pop(entry["number"], None)

    def _found_in_tiles(self, picture: RgbArray, words: Words) -> list[Detection]:
        settings, (height, width) = self._settings, picture.shape[:2]
        views = [Tile(0, 0, width, height), *tiles_of(height, width, settings.tile_size, settings.tile_overlap)]
        found: list[Detection] = []
        for start in range(0, len(views), settings.batch_size):
            batch = views[start : start + settings.batch_size]
            inputs = [self._predictor.prepare(picture[view.y0 : view.y1, view.x0 : view.x1]) for view in batch]
            for view, detections in zip(batch, self._detect(inputs, [words] * len(batch))):
                found += moved(detections, view, height, width)
        return class_wise_nms(without_pieces(found), settings.merging_nms)

    # --------------------------------------------------------------------------------------------------- common

    def _begin(self, entry: Entry, read: Any) -> Future[Any]:
        """The reading of a picture, begun now or before."""
        number = entry["number"]
        if number not in self._ahead:
            self._ahead[number] = self._threads.submit(read, entry)
        return self._ahead[number]

    def _words(self, entry: Entry) -> Words:
        """What to look for: the picture's own words, else those for all.

        Raises:
            ValueError: there are none for a model with text.
        """
        own = {kind: entry[kind] for kind in KINDS if kind in entry}
        words = {} if self.classes is not None else own or self._settings.words
        if not words and self.classes is None:
            raise ValueError("there is nothing to look for: it has no words of its own, and there are none for all")
        return words

    def _detect(self, inputs: Sequence[Any], words: Sequence[Words]) -> list[list[Detection]]:
        """Detections in prepared pictures, as records; `words` are of one kind."""
        asked: Words = {kind: [each[kind] for each in words] for kind in KINDS if kind in words[0]}
        results = self._predictor.detect(inputs, **asked, **self._settings.rivals(), **self._settings.thresholds())
        return [self._as_records(found) for found in results]

    def _as_records(self, found: Any) -> list[Detection]:
        instances = found.get("instances") if isinstance(found, Mapping) else found
        if instances is None:
            raise ValueError("the model gives no instances, which labels are; see --opts TEST.INSTANCE_ON True")
        kept = ("label", "score", "box", "mask")
        records = [{key: record[key] for key in kept if key in record} for record in self._plain(instances)]
        return [record for record in records if _has_area(record["box"])]

    def _plain(self, instances: Any) -> list[dict[str, Any]]:
        return detection_records(instances, self._settings.masks)


def _has_area(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _record(entry: Entry, height: int, width: int, detections: Sequence[Detection]) -> Record:
    return {"number": entry["number"], "height": height, "width": width, "detections": list(detections)}


def _failure(entry: Entry, error: Exception) -> Record:
    return {"number": entry["number"], "error": str(error) or type(error).__name__}
