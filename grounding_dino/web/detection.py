"""One request of a page: checked, run by the one thread that has the models, and what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import importlib
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from grounding_dino.thresholds import BOX_THRESHOLD
from grounding_dino.web.models import ModelShelf, Stopped

if TYPE_CHECKING:
    from grounding_dino.thresholds import CategoryThresholds

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]
CATEGORIES, CAPTION = "Categories", "Caption"
TEXT_THRESHOLD = 0.25
SHOWN_PIXELS = 560  # of the longer side of a result on the page, at least
MAX_TEXT = 5000  # characters; a prompt has 256 tokens, and a list of names is split over several


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        path, name: the uploaded file, None if there is none, and what its sender calls it.
        text: categories or a caption, as `kind` says; empty for a model of fixed classes.
        not_wanted: names that compete for boxes and are dropped; of categories alone.
        model: a name of the shelf's.
        by_category: take the server's file of thresholds for the names that it has.
    """

    path: str | None
    name: str = "picture"
    text: str = ""
    kind: str = CATEGORIES
    not_wanted: str = ""
    box_threshold: float = BOX_THRESHOLD
    text_threshold: float = TEXT_THRESHOLD
    model: str = ""
    by_category: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        record: `width`, `height` and the results by kind, as the demo writes them to its json.
        names: all categories that were looked for; empty for a caption.
        drawing: the picture with what was found, an array (H, W, 3) of uint8.
        preview: the same; small pictures are enlarged before lines and names are drawn, so that these are sharp.
        seconds: of the model, without loading it.
    """

    name: str
    model: str
    record: dict[str, Any]
    names: list[str]
    drawing: Any
    preview: Any
    seconds: float


class Refused(ValueError):
    """A request that cannot be answered; its message is a sentence for its sender."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        megapixels: of a picture.
        upload_bytes: of a file.
        seconds: of a detection, with loading the model.
    """

    megapixels: float = 50.0
    upload_bytes: int = 32 << 20
    seconds: float = 120.0


def split_names(text: str) -> list[str]:
    """Names that are set apart by commas, semicolons or lines, and where there are none of these, by periods."""
    separator = r"[,;\n]" if re.search(r"[,;\n]", text.strip()) else r"\.(?:\s|$)"
    return list(dict.fromkeys(name for part in re.split(separator, text) if (name := part.strip(" .\t\r"))))


class Detector:
    """Answers requests one after the other, in a thread of its own, so that the page stays awake."""

    def __init__(self, shelf: ModelShelf, limits: Limits, thresholds: CategoryThresholds | None = None) -> None:
        self.shelf = shelf
        self.limits = limits
        self.thresholds = thresholds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._thread.submit(importlib.import_module, "grounding_dino.predictor")  # seconds, while the page opens
        self._running: dict[str, threading.Event] = {}  # session -> set to stop its request

    async def __call__(self, request: Request, report: Report = lambda share, stage: None, session: str = "") -> Answer:
        """The answer to a request. When the waiting task is cancelled, the model stops too.

        Args:
            report: called, in another thread, with the share that is done, and what comes now.
            session: whose request it is, for :meth:`leave`.

        Raises:
            Refused: the request cannot be answered, or took too long.
        """
        self.check(request)
        stop = self._running[session] = threading.Event()
        context = contextvars.copy_context()  # Gradio finds the page to report to in it
        future = self._thread.submit(context.run, self._work, request, stop, report)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(self._too_long(request)) from None
        except Stopped:
            raise Refused("This was stopped.") from None
        finally:
            stop.set()
            if self._running.get(session) is stop:
                del self._running[session]

    def leave(self, session: str) -> None:
        """Stop the request of a user who has gone, so that others need not wait for it."""
        if session in self._running:
            self._running[session].set()

    def check(self, request: Request) -> None:
        """Refuse what needs no model to be refused.

        Raises:
            Refused: no picture, an unknown model, no text, or one that the model does not read.
        """
        if request.path is None:
            raise Refused("There is no picture yet. Upload one, paste one, or choose an example.")
        if request.model not in self.shelf.models:
            raise Refused(f"There is no model {request.model!r} here. There are: {', '.join(self.shelf.models)}.")
        if request.kind not in (CATEGORIES, CAPTION):
            raise Refused(f"A text is read as {CATEGORIES!r} or as a {CAPTION!r}, not as {request.kind!r}.")
        if not isinstance(request.text, str) or not isinstance(request.not_wanted, str):
            raise Refused("What to look for is a text: names with commas between them, or a caption.")
        text = request.text.strip()
        if len(text) + len(request.not_wanted) > MAX_TEXT:
            raise Refused(
                f"The text has {len(text) + len(request.not_wanted)} characters; at most {MAX_TEXT} are read."
            )
        if not self.shelf.models[request.model].reads_text:
            if text or request.not_wanted.strip():
                raise Refused(f"{request.model} finds a fixed list of classes and reads no text. Leave the text empty.")
        elif not text:
            raise Refused(
                'There is nothing to look for yet. Write names, such as "blue star, red cross", or a caption.'
            )
        elif request.kind == CATEGORIES and not split_names(text):
            raise Refused(f"{text!r} names nothing. Write names with commas between them.")

    def _too_long(self, request: Request) -> str:
        if request.model not in self.shelf:
            return f"{request.model} is still being loaded. Try again in a minute."
        return f"This took longer than {self.limits.seconds:g} seconds and was stopped. Try a smaller picture or model."

    def _work(self, request: Request, stop: threading.Event, report: Report) -> Answer:
        """The request's work in the models' thread."""
        from grounding_dino.result_records import result_records
        from grounding_dino.visualization import draw_results
        from grounding_dino.web.uploads import read_upload

        self.shelf.stop_by(stop)
        self.shelf.check()
        assert request.path is not None
        picture = self._refusing(read_upload, request.path, request.name, self.limits.megapixels)
        if request.model not in self.shelf:
            report(0.1, f"Loading {request.model}")
        predictor = self._refusing(self.shelf.get, request.model)
        self.shelf.check()
        report(0.4, "Looking")
        start = time.perf_counter()
        options = self._options(request)
        found = self._refusing(predictor, picture, image_format="RGB", **options)
        seconds = time.perf_counter() - start
        self.shelf.check()
        report(0.8, "Drawing")
        height, width = picture.shape[:2]
        record = {"width": width, "height": height, **result_records(found)}
        names = options.get("categories") or (list(predictor.classes or ()))
        drawing = preview = draw_results(picture, found)
        if max(width, height) < SHOWN_PIXELS:
            preview = draw_results(picture, found, scale=SHOWN_PIXELS / max(width, height))
        return Answer(request.name, request.model, record, names, drawing, preview, seconds)

    def _options(self, request: Request) -> dict[str, Any]:
        """The predictor's arguments."""
        options: dict[str, Any] = {"box_threshold": request.box_threshold, "text_threshold": request.text_threshold}
        if request.by_category and self.thresholds is not None and request.kind == CATEGORIES:
            options["box_threshold"] = dataclasses.replace(self.thresholds, default=request.box_threshold)
        if not self.shelf.models[request.model].reads_text:
            return options
        if request.kind == CAPTION:
            return {**options, "caption": request.text.strip()}
        options["categories"] = split_names(request.text)
        not_wanted = split_names(request.not_wanted)
        return {**options, "not_wanted": not_wanted} if not_wanted else options

    @staticmethod
    def _refusing(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The call's value; errors that explain themselves become refusals, all others are for the server's log."""
        from grounding_dino.cli.errors import explains_itself

        try:
            return call(*arguments, **options)
        except Stopped:
            raise
        except MemoryError:
            raise Refused("The server has not enough memory for this picture. Make it smaller.") from None
        except Exception as error:
            logger.warning("a request failed: %s", error, exc_info=not explains_itself(error))
            if explains_itself(error) and not isinstance(error, OSError):
                raise Refused(_sentence(str(error))) from error
            raise Refused("Something went wrong on the server; its log says what.") from error


def _sentence(text: str) -> str:
    """With a capital and a period."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
