"""What the demo does to a picture before and behind the model: reading and resizing, recording, drawing and writing."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.pictures import PicturePreparation, RgbArray, read_picture
from grounding_dino.result_records import result_records, result_text
from grounding_dino.visualization import draw_results

from PIL import Image

logger = logging.getLogger(__name__)

KEPT_BYTES = 512 << 20


class Job(NamedTuple):
    """A picture's place in the run, its file, and the file to draw it into, if any."""

    number: int
    path: str
    target: Path | None


class Finished(NamedTuple):
    """A picture's record for the json, its table for the terminal, and what went wrong in drawing it, or ""."""

    record: dict[str, Any]
    text: str
    error: str = ""


class Answer(NamedTuple):
    """What came of a call of :class:`PictureWork`: its value, or the sentence of its error."""

    call: str
    job: Job
    value: Any
    error: str = ""


@dataclasses.dataclass
class PictureWork:
    """The work on pictures apart from the model; pictures wait in it for being drawn.

    Attributes:
        prepare: makes the model's input.
        masks: whether records hold masks.
        kept_bytes: of pictures that wait; those beyond it are read again when it is their turn, so that a batch of
            large ones does not fill the memory.
    """

    prepare: PicturePreparation
    masks: bool = False
    kept_bytes: int = KEPT_BYTES
    _waiting: dict[int, RgbArray] = dataclasses.field(default_factory=dict)

    def read(self, job: Job) -> dict[str, Any]:
        """The model's input.

        Raises:
            ValueError, FileNotFoundError: of :func:`read_picture`.
        """
        picture = read_picture(job.path)
        waiting = sum(kept.nbytes for kept in self._waiting.values())
        if job.target is not None and waiting + picture.nbytes <= self.kept_bytes:
            self._waiting[job.number] = picture
        return self.prepare(picture)

    def finish(self, job: Job, found: Any, size: tuple[int, int]) -> Finished:
        """Record and draw what was found in a picture of `size` (height, width) that was read here."""
        picture = self._waiting.pop(job.number, None)
        results = result_records(found, self.masks)
        record = {"width": size[1], "height": size[0], **results}
        text, error = result_text(job.path, results, size), ""
        if job.target is not None:
            try:
                draw_to(job.target, read_picture(job.path) if picture is None else picture, found)
            except (OSError, ValueError) as problem:
                error = f"its drawing {str(job.target)!r} cannot be written: {problem}"
        return Finished(record, text, error)

    def forget(self, job: Job) -> None:
        """Nothing is to be drawn on this picture."""
        self._waiting.pop(job.number, None)

    def answer(self, call: str, job: Job, *arguments: Any) -> Answer:
        """The method `call` with its error, if any, as a sentence: one picture never stops the others."""
        try:
            return Answer(call, job, getattr(self, call)(job, *arguments))
        except Exception as error:
            logger.debug("%s of %s failed", call, job.path, exc_info=True)
            return Answer(call, job, None, str(error) or type(error).__name__)


class InThisProcess:
    """Does the work at once, where it is asked for; for few pictures, and where processes cannot be forked."""

    def __init__(self, work: PictureWork, slots: int) -> None:
        """`slots`: pictures that may be under way at once."""
        self.slots = slots
        self._work = work
        self._answers: deque[Answer] = deque()

    def submit(self, call: str, job: Job, *arguments: Any) -> None:
        """Do it; the answer waits."""
        self._answers.append(self._work.answer(call, job, *arguments))

    def has_answer(self) -> bool:
        """Whether an answer waits."""
        return bool(self._answers)

    def answer(self) -> Answer:
        """The next answer."""
        return self._answers.popleft()

    def close(self) -> None:
        """Nothing is left behind."""


def draw_to(target: Path, picture: RgbArray, found: Any) -> None:
    """Write the picture with what was found; formats that Pillow cannot write become .png."""
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.fromarray(draw_results(picture, found))
    try:
        drawn.save(target, quality=95, subsampling=0)  # JPEG's coarser colours would blur thin lines
    except (KeyError, ValueError):
        drawn.save(target.with_suffix(".png"))
