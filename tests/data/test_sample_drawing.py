"""Drawings of training samples show each object, and the words it is the answer to, in one colour."""

from __future__ import annotations

from typing import Any

from grounding_dino.data.sample_drawing import class_names, contact_sheet, draw_sample, prompt_panel
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import build_tokenizer
from grounding_dino.visualization import color_of

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances

TOKENIZER = build_tokenizer()
PROMPTS = PromptBuilder(TOKENIZER)
WIDTH = 480


def sample_of(boxes: list[list[float]], classes: list[int], **text: Any) -> dict[str, Any]:
    instances = Instances((200, WIDTH))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image = torch.full((3, 200, WIDTH), 30, dtype=torch.uint8)
    return {"image": image, "instances": instances, "file_name": "folder/a.jpg", "dataset_name": "set", **text}


def has_color(picture: np.ndarray, index: int) -> bool:
    """Whether the colour of a class is somewhere in the picture."""
    return bool((np.abs(picture - np.rint(color_of(index) * 255)).max(axis=-1) <= 1).any())


def test_boxes_and_words_of_a_class_have_its_colour() -> None:
    boxes = [[20.0, 60, 120, 160], [300, 60, 420, 160]]
    drawn = draw_sample(sample_of(boxes, [2, 0], categories=["cat", "dog", "bird"]), PROMPTS)
    assert drawn.shape[1] == WIDTH and drawn.shape[0] > 200
    picture, panel = drawn[:200], drawn[200:]
    assert has_color(picture[150:165, 30:110], 2) and not has_color(picture[150:165, 30:110], 0)
    assert has_color(picture[150:165, 310:400], 0) and not has_color(picture[150:165, 310:400], 2)
    assert has_color(panel, 0) and has_color(panel, 2)
    assert not has_color(panel, 1), "nothing in the picture is a dog"
    assert (picture[100, 200] == 30).all()


def marked(caption: str, phrases: list[Any], classes: list[int], width: int = WIDTH) -> np.ndarray:
    return prompt_panel(build_caption_prompt(caption, TOKENIZER, 256, phrases), classes, TOKENIZER, width)


def columns_of(panel: np.ndarray, index: int) -> list[int]:
    found = np.abs(panel - np.rint(color_of(index) * 255)).max(axis=-1) <= 1
    return np.flatnonzero(found.any(axis=0)).tolist()


def test_phrases_are_marked_where_they_stand() -> None:
    panel = marked("a cat and a dog", [(0, 5), (10, 15)], [0, 1])
    assert max(columns_of(panel, 0)) < min(columns_of(panel, 1))
    assert columns_of(marked("a cat and a dog", [(0, 5), (10, 15)], [1]), 0) == []
    apart = columns_of(marked("a cat and a dog", [[(0, 5), (10, 15)]], [0]), 0)
    assert (min(apart), max(apart)) == (min(columns_of(panel, 0)), max(columns_of(panel, 1)))


def test_a_word_of_two_phrases_has_both_colours() -> None:
    panel = marked("red cat", [(0, 7), (4, 7)], [0, 1])
    shared = columns_of(panel, 1)
    assert shared and set(shared) <= set(columns_of(panel, 0))


def test_a_sentence_about_nothing_has_no_colour() -> None:
    drawn = draw_sample(sample_of([], [], caption="a fish", phrases=[]), PROMPTS)
    assert drawn.shape[0] > 200 and not any(has_color(drawn, index) for index in range(8))


def test_long_prompts_take_more_lines_and_stay_inside() -> None:
    names = [f"antidisestablishmentarianism {number}" for number in range(30)]
    (prompt,) = build_category_prompts(names, TOKENIZER, 512)
    tall, wide = (prompt_panel(prompt, [29], TOKENIZER, width) for width in (200, 800))
    assert tall.shape[0] > 2 * wide.shape[0] and tall.shape[1] == 200
    assert has_color(tall, 29) and (tall[:, :4] == 255).all() and (tall[:, -4:] == 255).all()


def test_masks_are_drawn_and_small_pictures_enlarged() -> None:
    instances = Instances((20, 30))
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[5.0, 5, 15, 15]])), torch.tensor([0])
    sample = {"image": torch.zeros(3, 20, 30, dtype=torch.uint8), "instances": instances, "categories": ["cat"]}
    plain = draw_sample(sample, PROMPTS)
    assert plain.shape[1] == 480
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 5:15, 5:15] = True
    instances.gt_masks = BitMasks(masks)
    assert not plain[150:170, 150:170].any() and draw_sample(sample, PROMPTS)[150:170, 150:170].any(-1).all()


@pytest.mark.parametrize(("image_format", "color"), [("RGB", [200, 50, 10]), ("BGR", [10, 50, 200])])
def test_colours_of_the_picture_are_true_in_both_orders(image_format: str, color: list[int]) -> None:
    sample = sample_of([], [], categories=["cat"])
    sample["image"] = torch.tensor([200, 50, 10], dtype=torch.uint8)[:, None, None].expand(3, 200, WIDTH)
    assert draw_sample(sample, PROMPTS, image_format)[100, 100].tolist() == color


def test_a_contact_sheet_has_every_picture() -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    pictures = [np.full((50 * (place + 1), 100, 3), color, dtype=np.uint8) for place, color in enumerate(colors)]
    sheet = contact_sheet(pictures, width=60)
    assert sheet.shape[1] == 2 * 60 + 3 * 8
    assert all((sheet == color).all(axis=-1).sum() > 1500 for color in colors)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def test_samples_without_text_are_labelled_by_their_data_set() -> None:
    MetadataCatalog.get("drawn").set(thing_classes=["cat", "dog"], stuff_classes=["cat", "dog", "sky"])
    try:
        assert class_names("drawn") == ["cat", "dog"] and class_names("unheard of") == []
        sample = {**sample_of([[20.0, 60, 120, 160]], [1]), "dataset_name": "drawn"}
        drawn = draw_sample(sample, PROMPTS)
        assert has_color(drawn[150:165, 30:110], 1)
        prompted = draw_sample({**sample, "categories": ["cat", "dog"]}, PROMPTS)
        np.testing.assert_array_equal(drawn[:200], prompted[:200])
        assert 200 < len(drawn) < len(prompted)  # the header alone is below
    finally:
        MetadataCatalog.pop("drawn", None)


def test_the_prompt_is_drawn_as_the_model_reads_it() -> None:
    glip = PromptBuilder(TOKENIZER, sub_sentence=False)  # which adds no period
    without, written = (sample_of([], [], caption=caption, phrases=[]) for caption in ("a fish", "a fish."))
    assert np.array_equal(draw_sample(written, glip), draw_sample(without, PROMPTS))
    assert not np.array_equal(draw_sample(without, glip), draw_sample(without, PROMPTS))
