"""The page itself: what stands where, and what its buttons do."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.web.detection import (
    CAPTION,
    CATEGORIES,
    MAX_TEXT,
    TEXT_THRESHOLD,
    Answer,
    Detector,
    Refused,
    Request,
)
from grounding_dino.web.downloads import write_downloads
from grounding_dino.web.results import message_html, summary_html, table_html

import gradio as gr
from PIL import Image

TITLE = "Find what you name"
STYLE = Path(__file__).parent / "page.css"
KEPT_SECONDS = 30 * 60  # uploads and results are deleted then
PREVIEW_PIXELS = 2000  # of the longer side of the drawing on the page; the download has them all
API_NAME = "detect"
PLACEHOLDER = "blue star, red cross, brown ring"
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
_FAST: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture to choose, and what to look for in it."""

    path: Path
    text: str = ""


class Page:
    """The page around a detector; `blocks` is Gradio's."""

    def __init__(self, detector: Detector, examples: Sequence[Example] = (), folder: Path | None = None) -> None:
        """
        Args:
            examples: pictures to choose from.
            folder: where results are written for a while; Gradio's own by default.
        """
        self._detector = detector
        self._models = detector.shelf.models
        self._folder = folder or Path(os.environ["GRADIO_TEMP_DIR"])
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as self.blocks:
            self._head()
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=4, min_width=300, elem_id="controls"):
                    self._controls(examples)
                with gr.Column(scale=7, min_width=300, elem_id="results"):
                    self._results()
            self._events()
            gr.api(self.detect, api_name=API_NAME, **_ONE_AT_A_TIME)
        self.blocks.queue(max_size=32, api_open=False)

    # What stands where

    def _head(self) -> None:
        gr.HTML(
            f"<header><h1>{TITLE}</h1><p>Give a picture and say what to look for. The result is drawn on the picture, listed, "
            "and ready to be downloaded.</p></header>"
        )

    def _controls(self, examples: Sequence[Example]) -> None:
        first = next(iter(self._models.values()))
        self.picture = gr.Image(
            type="filepath",
            label="Picture",
            sources=["upload", "clipboard"],
            height=260,
            buttons=["fullscreen"],
            elem_id="picture",
            image_mode=None,
            alt_text="The picture to look into",
        )
        self.text = gr.Textbox(
            label="What to look for",
            placeholder=PLACEHOLDER,
            lines=2,
            max_lines=6,
            max_length=MAX_TEXT,
            elem_id="text",
            info="Names with commas between them; or a sentence, read as a caption.",
            visible=first.reads_text,
        )
        self.kind = gr.Radio(
            [CATEGORIES, CAPTION], value=CATEGORIES, label="Read the text as", elem_id="kind", visible=first.reads_text
        )
        with gr.Row(elem_id="buttons"):
            self.start = gr.Button("Detect", variant="primary", size="lg", elem_id="start", scale=3)
            self.cancel = gr.Button(
                "Cancel", variant="secondary", size="lg", elem_id="cancel", scale=1, interactive=False
            )
        if examples:
            chosen = [[str(example.path), example.text, CATEGORIES] for example in examples]
            self.examples = gr.Examples(
                chosen,
                [self.picture, self.text, self.kind],
                label="Examples",
                visible_columns=[0],
                api_visibility="private",
                elem_id="examples",
            )
        self._settings(first.name)

    def _settings(self, first: str) -> None:
        detector = self._detector
        with gr.Accordion("Settings", open=True, elem_id="settings"):
            self.model = gr.Dropdown(
                list(self._models), value=first, label="Model", elem_id="model", visible=len(self._models) > 1
            )
            self.not_wanted = gr.Textbox(
                label="Not wanted",
                placeholder="red star",
                max_length=MAX_TEXT,
                elem_id="not_wanted",
                info="Names that compete for boxes and are dropped.",
                visible=self._models[first].reads_text,
            )
            thresholds = detector.thresholds
            self.by_category = gr.Checkbox(
                thresholds is not None,
                label="Thresholds by category",
                elem_id="by_category",
                info="From the server's file; names that it lacks take the box threshold.",
                visible=thresholds is not None,
            )
            box = thresholds.default if thresholds is not None else Request.box_threshold
            self.box_threshold = gr.Slider(
                0,
                1,
                value=box,
                step=0.01,
                label="Box threshold",
                info="Least score of a detection.",
                elem_id="box_threshold",
            )
            self.text_threshold = gr.Slider(
                0,
                1,
                value=TEXT_THRESHOLD,
                step=0.01,
                label="Text threshold",
                info="Least score of a caption's word.",
                elem_id="text_threshold",
                visible=False,
            )

    def _results(self) -> None:
        self.drawing = gr.Image(
            label="Result",
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="drawing",
            alt_text="The picture with what was found drawn on it; the table below lists it",
        )
        self.message = gr.HTML(message_html("Choose an example, or upload a picture.", "hint"), elem_id="message")
        with gr.Row(elem_id="downloads"):
            self.downloads = [
                gr.DownloadButton(label, interactive=False, size="sm", elem_id=f"download_{name}")
                for name, label in (
                    ("picture", "Picture (PNG)"),
                    ("json", "Detections (JSON)"),
                    ("coco", "COCO (JSON)"),
                )
            ]
        self.table = gr.HTML("", elem_id="table")

    # What its buttons do

    def _events(self) -> None:
        inputs = [
            self.picture,
            self.text,
            self.kind,
            self.not_wanted,
            self.model,
            self.box_threshold,
            self.text_threshold,
            self.by_category,
        ]
        buttons = [self.start, self.cancel]
        outputs = [self.drawing, self.message, self.table, *self.downloads]
        run = gr.on(
            [self.start.click, self.text.submit, self.not_wanted.submit],
            lambda: (gr.Button(interactive=False), gr.Button(interactive=True)),
            None,
            buttons,
            **_FAST,
        )
        answer = run.then(
            self.answer,
            inputs,
            outputs,
            preprocess=False,
            show_progress="full",
            show_progress_on=[self.drawing],
            scroll_to_output=True,
            api_visibility="private",
            trigger_mode="once",
            **_ONE_AT_A_TIME,
        )

        def idle() -> tuple[Any, ...]:
            return gr.Button(interactive=True), gr.Button(interactive=False)

        answer.then(idle, None, buttons, **_FAST)
        self.cancel.click(
            lambda: (*idle(), message_html("Cancelled.", "hint")),
            None,
            [*buttons, self.message],
            cancels=[answer],
            **_FAST,
        )
        self.model.change(
            self.choose, [self.model, self.kind], [self.text, self.kind, self.not_wanted, self.text_threshold], **_FAST
        )
        self.kind.change(
            lambda kind: (gr.Textbox(visible=kind == CATEGORIES), gr.Slider(visible=kind == CAPTION)),
            self.kind, [self.not_wanted, self.text_threshold], **_FAST,
        )  # fmt: skip

    def choose(self, name: str, kind: str) -> list[Any]:
        """Show what the chosen model reads: a model of fixed classes reads nothing."""
        reads = name in self._models and self._models[name].reads_text
        text = gr.Textbox(visible=True) if reads else gr.Textbox(value="", visible=False)
        unwanted = gr.Textbox(visible=kind == CATEGORIES) if reads else gr.Textbox(value="", visible=False)
        return [text, gr.Radio(visible=reads), unwanted, gr.Slider(visible=reads and kind == CAPTION)]

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
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """What the page shows for a request: a drawing with its table and files, or a message."""
        path, name = uploaded_file(picture)
        not_wanted = not_wanted if kind == CATEGORIES else ""
        request = Request(path, name, text, kind, not_wanted, box_threshold, text_threshold, model, by_category)
        try:
            found = await self._detector(request, lambda stage: progress(None, desc=stage))
        except Refused as refusal:
            nothing = [gr.DownloadButton(value=None, interactive=False) for _ in self.downloads]
            return [None, message_html(str(refusal)), "", *nothing]
        preview, *files = await asyncio.to_thread(self._written, found)
        downloads = [gr.DownloadButton(value=str(file), interactive=True) for file in files]
        return [str(preview), summary_html(found), table_html(found.record), *downloads]

    async def detect(
        self,
        picture: gr.FileData,
        text: str = "",
        kind: str = CATEGORIES,
        not_wanted: str = "",
        box_threshold: float = Request.box_threshold,
        text_threshold: float = TEXT_THRESHOLD,
        model: str = "",
    ) -> dict:
        """Detect in an uploaded picture what a text names.

        Args:
            picture: handle_file("street.jpg") of gradio_client uploads it.
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
        request = Request(path, name, text, kind, not_wanted, box_threshold, text_threshold, model)
        try:
            found = await self._detector(request)
        except Refused as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal
        return {"file_name": found.name, **found.record}

    def _written(self, answer: Answer) -> list[Path]:
        """The files of an answer: a preview, and those to be downloaded."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return [write_preview(answer, folder), *write_downloads(answer, folder)]


def write_preview(answer: Answer, folder: Path) -> Path:
    """The drawing as the page shows it, small enough for a telephone."""
    drawing = Image.fromarray(answer.drawing)
    drawing.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    path = folder / "preview.webp"
    drawing.save(path, quality=90)
    return path


def uploaded_file(payload: Any) -> tuple[str | None, str]:
    """The file that was uploaded, None if there is none, and its sender's name for it.

    Gradio's own reading would decode it before its size is known, and name paths of the server where it fails.
    """
    file = payload if isinstance(payload, dict) else payload.model_dump() if payload else {}
    path = file.get("path")
    return (str(path), Path(str(file.get("orig_name") or path)).name) if path else (None, "")
