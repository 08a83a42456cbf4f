"""What the page does: its buttons, and the endpoint for programs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.thresholds import BOX_THRESHOLD
from grounding_dino.web.detection import CAPTION, CATEGORIES, TEXT_THRESHOLD, Answer, Detector, Refused, Request
from grounding_dino.web.downloads import write_downloads, write_preview
from grounding_dino.web.examples import Example
from grounding_dino.web.layout import NAME_EXAMPLES, TITLE, Controls, Results, head
from grounding_dino.web.results import message_html, summary_html, table_html

import gradio as gr

API_NAME = "detect"
MAX_WAITING = 32  # requests
KEPT_SECONDS = 30 * 60  # uploads and results are deleted then
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Page:
    """The page around a detector; `blocks` is Gradio's."""

    def __init__(self, detector: Detector, examples: Sequence[Example], folder: Path) -> None:
        """
        Args:
            examples: pictures to choose from.
            folder: Gradio's own, where results are written for a while.
        """
        self._detector = detector
        self._models = detector.shelf.models
        self._folder = folder
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(60, KEPT_SECONDS)
        ) as self.blocks:
            head()
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=4, min_width=300, elem_id="controls"):
                    self._controls = Controls(list(self._models.values()), examples, detector.thresholds)
                with gr.Column(scale=8, min_width=300, elem_id="results"):
                    self._results = Results()
            self._connect()
            self.blocks.load(None, js=NAME_EXAMPLES)
            self.blocks.unload(self.leave)
            gr.api(self.detect, api_name=API_NAME, **_ONE_AT_A_TIME)
        self.blocks.queue(max_size=MAX_WAITING, api_open=False)

    def _connect(self) -> None:
        """Say what follows from what."""
        controls, results = self._controls, self._results
        buttons = [controls.start, controls.cancel]
        running: dict[str, Any] = {"fn": lambda: _buttons(is_running=True), "outputs": buttons, **_AT_ONCE}
        asked = [controls.start.click, controls.text.submit, controls.not_wanted.submit]
        begun = [gr.on(asked, **running), *(event.success(**running) for event in controls.chosen)]
        answered = [self._answer_behind(event) for event in begun]
        for event in answered:
            event.then(lambda: _buttons(is_running=False), None, buttons, **_AT_ONCE)
        controls.cancel.click(
            lambda: [*_buttons(is_running=False), message_html("Cancelled.", "hint")],
            None,
            [*buttons, results.message],
            cancels=answered,
            **_AT_ONCE,
        )
        shown = [controls.prompt, controls.text, controls.not_wanted, controls.text_threshold]
        gr.on(
            [controls.model.change, controls.kind.change], self.show, [controls.model, controls.kind], shown, **_AT_ONCE
        )

    def leave(self, visitor: gr.Request) -> None:
        """A page was closed."""
        self._detector.leave(_session(visitor))

    def _answer_behind(self, event: Any) -> Any:
        """Answer after an event."""
        return event.then(
            self.answer,
            self._controls.asked,
            self._results.shown,
            preprocess=False,  # Gradio's own reading would decode a picture before its size is known
            show_progress_on=[self._results.drawing],
            scroll_to_output=True,
            api_visibility="private",
            **_ONE_AT_A_TIME,
        )

    def show(self, model: str, kind: str) -> list[Any]:
        """Show what the chosen model reads; a model of fixed classes reads no text."""
        if model not in self._models or not self._models[model].reads_text:
            return [gr.Group(visible=False), "", gr.Textbox(value="", visible=False), gr.Slider(visible=False)]
        is_caption = kind == CAPTION
        return [gr.Group(visible=True), gr.skip(), gr.Textbox(visible=not is_caption), gr.Slider(visible=is_caption)]

    async def answer(
        self,
        picture: Any,
        text: str,
        kind: str,
        not_wanted: str,
        model: str,
        box_threshold: float,
        text_threshold: float,
        by_category: bool,
        visitor: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """What the page shows for a request, the values of `Controls.asked`: a drawing and its table, or a message."""
        path, name = uploaded_file(picture)
        not_wanted = not_wanted if kind == CATEGORIES else ""  # hidden beside a caption
        request = Request(path, name, text, kind, not_wanted, box_threshold, text_threshold, model, by_category)
        try:
            found = await self._detector(request, progress, _session(visitor))
        except Refused as refusal:
            empty = [gr.DownloadButton(value=None, interactive=False) for _ in self._results.downloads]
            return [None, message_html(str(refusal)), "", *empty]
        preview, *files = await asyncio.to_thread(self._written, found)
        downloads = [gr.DownloadButton(value=str(file), interactive=True) for file in files]
        return [str(preview), summary_html(found), table_html(found.record), *downloads]

    async def detect(
        self,
        picture: gr.FileData,
        text: str = "",
        kind: str = CATEGORIES,
        not_wanted: str = "",
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        model: str = "",
    ) -> dict:
        """Detect in an uploaded picture what a text names; the page's endpoint for programs.

        Args:
            picture: `handle_file("street.jpg")` of gradio_client uploads it.
            text: names with commas between them, or a caption; empty for a model of fixed classes.
            kind: "Categories" or "Caption".
            not_wanted: names that compete for boxes and are dropped.
            box_threshold: least score of a detection.
            text_threshold: least score of a caption's word.
            model: a name of the page's list; the first by default.

        Returns:
            `file_name`, `width`, `height` and `detections` (or segments), as in the page's json.
        """
        path, name = uploaded_file(picture)
        model = model or next(iter(self._models))
        request = Request(path, name, text, kind, not_wanted, box_threshold, text_threshold, model, by_category=True)
        try:
            found = await self._detector(request)
        except Refused as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal
        return {"file_name": found.name, **found.record}

    def _written(self, answer: Answer) -> list[Path]:
        """The files of an answer: a preview, and those to be downloaded."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return [write_preview(answer, folder), *write_downloads(answer, folder)]


def uploaded_file(payload: Any) -> tuple[str | None, str]:
    """The path of an uploaded file, None if there is none, and its sender's name for it."""
    file = payload if isinstance(payload, dict) else getattr(payload, "__dict__", {})
    path = file.get("path")
    return (str(path), Path(str(file.get("orig_name") or path)).name) if path else (None, "")


def _session(visitor: gr.Request) -> str:
    return str(getattr(visitor, "session_hash", ""))


def _buttons(is_running: bool) -> list[Any]:
    """The buttons to start and to cancel."""
    return [gr.Button(interactive=not is_running), gr.Button(visible=is_running)]
