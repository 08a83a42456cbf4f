"""What stands where on the page: the controls, the results, and the theme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.thresholds import BOX_THRESHOLD, CategoryThresholds
from grounding_dino.web.detection import CAPTION, CATEGORIES, MAX_TEXT, TEXT_THRESHOLD
from grounding_dino.web.examples import Example
from grounding_dino.web.models import ServedModel
from grounding_dino.web.results import message_html

import gradio as gr

TITLE = "Find what you name"
STYLE = Path(__file__).parent / "page.css"
HINT = "Choose an example or upload a picture, then press Detect."
_DOWNLOADS = {"picture": "Save picture", "json": "Save JSON", "coco": "Save COCO"}


# Gradio's pictures of examples have no names of their own that a screen reader could say.
NAME_EXAMPLES = """() => {
  const nameThem = () => document.querySelectorAll("#examples button").forEach(
    (button, index) => button.setAttribute("aria-label", `Example ${index + 1}`));
  new MutationObserver(nameThem).observe(document.body, {childList: true, subtree: true});
  nameThem();
}"""


class Controls:
    """The left side: what is asked for. Attributes are Gradio's components."""

    def __init__(
        self, models: Sequence[ServedModel], examples: Sequence[Example], thresholds: CategoryThresholds | None
    ) -> None:
        reads_text = models[0].reads_text
        self.picture = gr.Image(
            type="filepath",
            image_mode=None,
            label="Picture",
            sources=["upload", "clipboard"],
            placeholder="Drop a picture here\n- or -\nclick to choose one",
            height=250,
            buttons=["fullscreen"],
            alt_text="The picture to look into",
            elem_id="picture",
        )
        self.text = gr.Textbox(
            label="What to look for",
            info="Names with commas between them, or a caption.",
            placeholder="blue star, red cross, brown ring",
            lines=2,
            max_lines=6,
            max_length=MAX_TEXT,
            elem_id="text",
            render=False,
        )
        self.kind = gr.Radio(
            [CATEGORIES, CAPTION],
            value=CATEGORIES,
            label="Read it as",
            elem_id="kind",
            render=False,
        )
        self.chosen = [self._examples(examples)] if examples else []  # what happens when an example is chosen
        with gr.Group(visible=reads_text, elem_id="prompt") as self.prompt:
            self.text.render()
            self.kind.render()
        with gr.Row(elem_id="buttons"):
            self.start = gr.Button("Detect", variant="primary", size="lg", scale=3, elem_id="start")
            self.cancel = gr.Button("Cancel", size="lg", scale=1, min_width=110, visible=False, elem_id="cancel")
        with gr.Accordion("Settings", open=True, elem_id="settings"):
            self._settings(models, thresholds)

    @property
    def asked(self) -> list[Any]:
        """What a request is made of, in the order of :meth:`grounding_dino.web.page.Page.answer`."""
        names = [self.picture, self.text, self.kind, self.not_wanted, self.model]
        return [*names, self.box_threshold, self.text_threshold, self.by_category]

    def _examples(self, examples: Sequence[Example]) -> Any:
        shown = gr.Examples(
            [[str(example.path), example.text, CATEGORIES] for example in examples],
            [self.picture, self.text, self.kind],
            label="Examples",
            visible_columns=[0],
            api_visibility="private",
            elem_id="examples",
        )
        return shown.load_input_event

    def _settings(self, models: Sequence[ServedModel], thresholds: CategoryThresholds | None) -> None:
        self.model = gr.Dropdown(
            [model.name for model in models],
            value=models[0].name,
            label="Model",
            filterable=False,
            visible=len(models) > 1,
            elem_id="model",
        )
        self.box_threshold = gr.Slider(
            0,
            1,
            value=BOX_THRESHOLD if thresholds is None else thresholds.default,
            step=0.01,
            label="Box threshold",
            info="Least score of a detection.",
            elem_id="box_threshold",
        )
        self.by_category = gr.Checkbox(
            thresholds is not None,
            label="Thresholds by category",
            info="Those of the server's file; the box threshold is for names that it lacks.",
            visible=thresholds is not None,
            elem_id="by_category",
        )
        self.text_threshold = gr.Slider(
            0,
            1,
            value=TEXT_THRESHOLD,
            step=0.01,
            label="Text threshold",
            info="Least score of a caption's word.",
            visible=False,
            elem_id="text_threshold",
        )
        self.not_wanted = gr.Textbox(
            label="Not wanted",
            info="Names that compete for boxes and are dropped.",
            placeholder="red star",
            max_length=MAX_TEXT,
            visible=models[0].reads_text,
            elem_id="not_wanted",
        )


class Results:
    """The right side: what was found. Attributes are Gradio's components."""

    def __init__(self) -> None:
        self.drawing = gr.Image(
            type="filepath",
            label="Result",
            interactive=False,
            buttons=["fullscreen"],
            alt_text="The picture with what was found drawn on it; the table on this page lists it",
            elem_id="drawing",
        )
        self.message = gr.HTML(message_html(HINT, "hint"), elem_id="message")
        with gr.Row(elem_id="downloads"):
            self.downloads = [
                gr.DownloadButton(label, interactive=False, size="sm", min_width=90, elem_id=f"download_{name}")
                for name, label in _DOWNLOADS.items()
            ]
        self.table = gr.HTML("", elem_id="table")

    @property
    def shown(self) -> list[Any]:
        """What an answer fills, in this order."""
        return [self.drawing, self.message, self.table, *self.downloads]


def head() -> None:
    """The title."""
    gr.HTML(
        f"<header><h1>{TITLE}</h1><p>Upload a picture and write what to look for in it.</p></header>", elem_id="head"
    )


def theme() -> Any:
    """Fonts of the reader's own system, quiet labels."""
    return gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(block_title_text_weight="600", block_label_text_color="*body_text_color")
