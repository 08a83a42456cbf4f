"""Training samples as pictures: what the model gets, with the words that each object is the answer to."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from grounding_dino.drawing.palette import as_bytes
from grounding_dino.drawing.text import find_font
from grounding_dino.structures import Prompt
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import WordPieceTokenizer
from grounding_dino.visualization import color_of, draw_objects

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Color = tuple[int, int, int]

_WIDTH = 480  # pixels of a drawing at least
_FONT_SIZE = 15
_LINE = 22  # pixels from one line of the prompt to the next
_MARGIN = 8
_TEXT, _QUIET = (0, 0, 0), (110, 110, 110)


def draw_sample(sample: dict[str, Any], prompts: PromptBuilder, image_format: str = "RGB") -> Picture:
    """A training sample: its picture with boxes, masks and labels, and below it the prompt, token by token.

    The tokens that an object is the answer to stand on its colour, which is that of its class within this prompt. Where
    phrases of several objects share a token, it stands on all of their colours. Samples for models without text have no
    prompt; their labels are the class names of the data set.

    Args:
        sample: `image` (3, H, W) uint8, `instances`, and `categories` or `caption` with `phrases` if there is a text,
            as mappers give it.
        prompts: how the model reads its text.
        image_format: order of the channels, "RGB" or "BGR".
    """
    prompt = _prompt_of(sample, prompts)
    names_of_classes = prompt.names if prompt else class_names(sample.get("dataset_name", ""))
    instances = sample["instances"]
    classes = instances.gt_classes.tolist()
    image = _rgb(sample["image"], image_format)
    scale = max(1.0, _WIDTH / image.shape[1])
    drawn = draw_objects(
        image,
        instances.gt_boxes,
        instances.gt_masks if instances.has("gt_masks") else None,
        [names_of_classes[index] if index < len(names_of_classes) else str(index) for index in classes],
        [color_of(index) for index in classes],
        scale,
    )
    height, width = image.shape[:2]
    names = (sample.get("dataset_name", ""), os.path.basename(sample.get("file_name", "")))
    facts = (*names, f"{width} x {height}", f"objects: {len(classes)}")
    header = "   ".join(fact for fact in facts if fact)
    return np.concatenate(
        [drawn, prompt_panel(prompt, sorted(set(classes)), prompts.tokenizer, drawn.shape[1], header)]
    )


def class_names(dataset_name: str) -> list[str]:
    """The names of a data set's classes by their numbers: of things, or of things and stuff; [] where unknown."""
    if dataset_name not in MetadataCatalog:
        return []
    metadata = MetadataCatalog.get(dataset_name)
    return list(metadata.get("thing_classes", None) or metadata.get("stuff_classes", None) or ())


def prompt_panel(
    prompt: Prompt | None, classes: Sequence[int], tokenizer: WordPieceTokenizer, width: int, header: str = ""
) -> Picture:
    """The tokens of a prompt, without [CLS] and [SEP], written in lines (none: the header alone); (height, width, 3).

    Args:
        classes: the categories or phrases of the prompt whose tokens are marked, each in its colour.
        header: a line above.
    """
    colors: dict[int, list[Color]] = defaultdict(list)
    for index, spans in ((index, prompt.token_spans[index]) for index in classes) if prompt else ():
        for column in (column for start, end in spans for column in range(start, end)):
            colors[column].append(as_bytes(color_of(index)))
    words = [
        (column, tokenizer.decode([token]))
        for column, token in enumerate(prompt.input_ids if prompt else ())
        if token not in (tokenizer.start_id, tokenizer.end_id)
    ]
    places, num_lines = _lay_out([text for _, text in words], width) if prompt else ([], 0)
    panel = Image.new("RGB", (width, (num_lines + bool(header)) * _LINE + 2 * _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(panel)
    top = _MARGIN
    if header:
        draw.text((_MARGIN, top), header, font=_font(header), fill=_QUIET)
        top += _LINE
    for (column, text), (x, line) in zip(words, places, strict=True):
        _write(draw, text.removeprefix("##"), (x, top + line * _LINE), colors[column])
    return np.asarray(panel)


def contact_sheet(pictures: Sequence[Picture], width: int = 400) -> Picture:
    """All pictures on one, each at most `width` pixels wide, as many beside as below each other."""
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    small = []
    for picture in pictures:
        share = min(1.0, width / picture.shape[1])
        size = (max(1, round(picture.shape[1] * share)), max(1, round(picture.shape[0] * share)))
        small.append(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    columns = math.ceil(math.sqrt(len(small)))
    rows = [small[start : start + columns] for start in range(0, len(small), columns)]
    heights = [max(thumbnail.height for thumbnail in row) + _MARGIN for row in rows]
    sheet = Image.new("RGB", (columns * (width + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), (200, 200, 200))
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, thumbnail in enumerate(row):
            sheet.paste(thumbnail, (_MARGIN + column * (width + _MARGIN), top))
        top += height
    return np.asarray(sheet)


def _prompt_of(sample: dict[str, Any], prompts: PromptBuilder) -> Prompt | None:
    if "caption" in sample:
        return prompts.of_caption(sample["caption"], sample.get("phrases"))
    if "categories" in sample:
        return prompts.of_categories(sample["categories"])[0]
    return None


def _rgb(image: torch.Tensor, image_format: str) -> Picture:
    pixels = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[..., ::-1] if image_format == "BGR" else pixels)


def _font(text: str = "") -> Any:
    return find_font(text, _FONT_SIZE)


def _lay_out(texts: Sequence[str], width: int) -> tuple[list[tuple[float, int]], int]:
    """Where each token begins, and in which line; pieces of words ("##ing") stand close to the piece before."""
    places: list[tuple[float, int]] = []
    x, line = float(_MARGIN), 0
    for text in texts:
        length = _font(text).getlength(text.removeprefix("##"))
        start = x + (0 if text.startswith("##") or x == _MARGIN else _font().getlength(" "))
        if start + length > width - _MARGIN and x > _MARGIN:
            start, line = float(_MARGIN), line + 1
        places.append((start, line))
        x = start + length
    return places, line + 1


def _write(draw: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], colors: Sequence[Color]) -> None:
    """A token on bands of its colours; in grey where it has none."""
    x, y = corner
    right = x + _font(text).getlength(text)
    for band, color in enumerate(colors):
        top, bottom = (y + (_LINE - 3) * edge / len(colors) for edge in (band, band + 1))
        draw.rectangle((x - 1, top, right + 1, bottom), fill=color)
    bright = [0.299 * red + 0.587 * green + 0.114 * blue > 128 for red, green, blue in colors]
    fill = _QUIET if not colors else _TEXT if all(bright) else (255, 255, 255)
    draw.text((x, y), text, font=_font(text), fill=fill)
