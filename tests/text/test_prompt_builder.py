"""Prompts as one model reads them: Grounding DINO's sub-sentences, and GLIP's one sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from grounding_dino.config import add_grounding_dino_config
from grounding_dino.structures import Prompt
from grounding_dino.text.batch import positive_map
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts, encode_name
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
from detectron2.config import get_cfg

GOLDEN = sorted((Path(__file__).parents[1] / "reference" / "glip").glob("golden_*.npz"))
TOKENIZER = build_tokenizer()
GLIP = PromptBuilder(sub_sentence=False)
CAT, DOG, PERIOD = 4937, 3899, 1012


def short(max_tokens: int) -> PromptBuilder:
    return PromptBuilder(max_tokens=max_tokens, sub_sentence=False)


def words(prompt: Prompt) -> list[str]:
    """The decoded tokens of each category or phrase."""
    return [
        " | ".join(TOKENIZER.decode(prompt.input_ids[start:end]) for start, end in spans)
        for spans in prompt.token_spans
    ]


def assert_one_sentence(prompt: Prompt) -> None:
    """The whole text is one segment, and the prompt's caption is what the model reads."""
    length = len(prompt)
    assert prompt.attention_ranges == ((0, length),) * length
    assert prompt.position_ids == tuple(range(length))
    assert TOKENIZER.encode(prompt.caption).ids == prompt.input_ids


# -------------------------------------------------------------------------------------- against the references


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_tokens_of_the_published_implementations(path: Path) -> None:
    golden = np.load(path)
    caption = str(golden["caption"])
    (categories,) = GLIP.of_categories(caption.split(". "))
    assert categories.caption == caption
    for prompt in (categories, GLIP.of_caption(caption)):
        assert list(prompt.input_ids) == golden["input_ids"].tolist()
        assert_one_sentence(prompt)
    if "positive_map" in golden:
        columns = json.loads(str(golden["positive_map"])).values()
        assert [row.nonzero().flatten().tolist() for row in positive_map(categories, 20)] == list(columns)


def test_there_are_references() -> None:
    assert len(GOLDEN) == 7


# ------------------------------------------------------------------------------------------------ categories


@pytest.mark.parametrize(
    "names",
    [
        ["cat"],
        ["t.v."],
        ["t.v.", "cat", "u.s."],
        ["what?", "dog"],
        ["cat", "dog", "Cat"],
        ["Hot  Dog", " café ", "r2-d2", "cup/mug"],
        ["antidisestablishmentarianism", "猫", "\U0001f984"],
    ],
    ids=lambda names: names[0],
)
def test_names_are_joined_by_periods(names: list[str]) -> None:
    (prompt,) = GLIP.of_categories(names)
    normalised = [" ".join(name.lower().split()) for name in names]
    assert prompt.caption == ". ".join(normalised)
    assert_one_sentence(prompt)
    spelled = [" ".join(TOKENIZER.decode([token]) for token in encode_name(name, TOKENIZER)) for name in names]
    found = [
        " ".join(TOKENIZER.decode([token]) for start, end in spans for token in prompt.input_ids[start:end])
        for spans in prompt.token_spans
    ]
    assert found == spelled
    assert (prompt.names, prompt.category_indices) == (tuple(names), tuple(range(len(names))))


def test_a_single_name_is_no_sentence() -> None:
    (prompt,) = GLIP.of_categories(["cat"])
    assert (prompt.caption, prompt.input_ids) == ("cat", (101, CAT, 102))
    assert prompt.token_spans == (((1, 2),),)


def test_only_a_names_own_period_ends_a_prompt() -> None:
    (prompt,) = GLIP.of_categories(["cat", "t.v."])
    assert prompt.caption == "cat. t.v."
    assert words(prompt) == ["cat", "t. v."]
    assert prompt.token_spans[1] == ((3, 7),) and len(prompt) == 8


def test_repeated_names_are_written_once_each() -> None:
    (prompt,) = GLIP.of_categories(["cat", "dog", "cat"])
    assert prompt.caption == "cat. dog. cat"
    assert prompt.token_spans == (((1, 2),), ((3, 4),), ((5, 6),))


# --------------------------------------------------------------------------------------------------- the limit


def test_the_last_token_of_a_prompt_is_used() -> None:
    """Two of 256 tokens are [CLS] and [SEP], and 127 names have 126 periods between them."""
    assert [len(prompt) for prompt in GLIP.of_categories(["cat"] * 127)] == [255]
    assert [len(prompt) for prompt in GLIP.of_categories(["cat"] * 128)] == [255, 3]
    names = ["hot dog", *["cat"] * 126]
    assert [len(prompt) for prompt in GLIP.of_categories(names)] == [256]
    assert [len(prompt) for prompt in PromptBuilder().of_categories(names)] == [255, 4]


@pytest.mark.parametrize("max_tokens", range(5, 24))
def test_chunks_are_full_and_cut_no_name(max_tokens: int) -> None:
    names = ["cat", "hot dog", "t.v.", "dog", "red double bus", "what?", "cup/mug", "zebra", "tv"]
    builder = short(max_tokens)
    if any(builder.name_fault(name) for name in names):
        with pytest.raises(ValueError, match=f"a prompt of {max_tokens} tokens holds a name of at most"):
            builder.of_categories(names)
        return
    prompts = builder.of_categories(names)
    assert all(len(prompt) <= max_tokens for prompt in prompts)
    assert [name for prompt in prompts for name in prompt.names] == names
    assert [index for prompt in prompts for index in prompt.category_indices] == list(range(len(names)))
    for prompt, following in zip(prompts, prompts[1:]):
        assert_one_sentence(prompt)
        ids = encode_name(following.names[0], TOKENIZER)
        assert len(prompt) + 1 + len(ids) > max_tokens  # the next name had no room


def test_a_name_as_long_as_a_prompt() -> None:
    longest = " ".join(["cat"] * 254)
    (prompt,) = GLIP.of_categories([longest])
    assert len(prompt) == 256 and prompt.token_spans == (((1, 255),),)
    assert GLIP.name_fault(longest) == "" and "at most 253" in PromptBuilder().name_fault(longest)
    with pytest.raises(ValueError, match=r"category 1 .* has 255 tokens, but a prompt of 256 tokens .* at most 254"):
        GLIP.of_categories(["dog", longest + " cat"])


def test_categories_that_each_exceed_the_limit() -> None:
    """The first is named; none is left out in silence."""
    with pytest.raises(ValueError, match=r"category 0 \('cat cat cat'\) has 3 tokens, .* of at most 2; shorten"):
        short(4).of_categories(["cat cat cat", "dog dog dog", "red red red"])


def test_names_that_fill_a_prompt_one_by_one() -> None:
    assert [len(prompt) for prompt in short(4).of_categories(["hot dog", "red cat"])] == [4, 4]
    assert [prompt.caption for prompt in GLIP.of_categories(["cat", "dog"], names_per_prompt=1)] == ["cat", "dog"]


def test_the_budget_is_what_names_take() -> None:
    for builder in (GLIP, PromptBuilder()):
        (prompt,) = builder.of_categories(["hot dog", "cat"])
        assert builder.max_tokens - len(prompt) == builder.names_budget - (3 + 2)


# ----------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("caption", "read"),
    [
        ("A cat", "a cat"),
        ("  A cat. ", "a cat."),
        ("cat. dog", "cat. dog"),
        ("cat . dog .", "cat . dog ."),
        ("is it a t.v.", "is it a t.v."),
        ("is it a cat?", "is it a cat?"),
    ],
)
def test_a_caption_is_read_as_it_stands(caption: str, read: str) -> None:
    """The authors add no period; one that the user wrote stays."""
    prompt = GLIP.of_caption(caption)
    assert prompt.caption == read
    assert_one_sentence(prompt)
    assert GLIP.caption_length(caption) == len(prompt)


@pytest.mark.parametrize("end", ["", ".", "?", " ."])
def test_phrases_at_the_end_of_a_caption(end: str) -> None:
    caption = " The cat on a u.s. MAT" + end
    prompt = GLIP.of_caption(caption, [(5, 8), [(1, 4), (19, 22)], (14, len(caption))])
    assert words(prompt)[:2] == ["cat", "the | mat"]
    assert prompt.token_spans[2][-1][1] == len(prompt) - 1  # up to [SEP]
    assert prompt.names == ("cat", "The MAT", "u.s. MAT" + end)
    assert_one_sentence(prompt)


def test_a_full_caption_is_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prompt = short(6).of_caption("one two three four", [(14, 18)])
    assert len(prompt) == 6 and words(prompt) == ["four"] and not caplog.text


def test_a_cut_caption_keeps_its_end_and_says_what_is_read(caplog: pytest.LogCaptureFixture) -> None:
    caption = "cat dog antidisestablishmentarianism dog"
    with caplog.at_level(logging.WARNING):
        prompt = short(6).of_caption(caption, [(0, 3), (8, 36), (37, 40)])
    assert prompt.input_ids[:3] + prompt.input_ids[-1:] == (101, CAT, DOG, 102) and len(prompt) == 6
    assert_one_sentence(prompt)
    assert caption.startswith(prompt.caption)
    assert prompt.token_spans == (((1, 2),), ((3, 5),), ())
    assert prompt.names == ("cat", "antidisestablishmentarianism", "dog")
    assert "is cut to 6" in caplog.text and "phrase 2 keeps 0 of its 1 tokens" in caplog.text
    assert short(6).caption_length(caption) > 6


@pytest.mark.parametrize("caption", ["", " \t", ".", "?!"])
def test_a_caption_without_a_word_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="contains no word"):
        GLIP.of_caption(caption)


# ------------------------------------------------------------------------------------------------- both styles


def test_grounding_dinos_prompts_are_the_default() -> None:
    builder = PromptBuilder(TOKENIZER)
    assert builder.of_categories(["cat", "t.v."]) == build_category_prompts(["cat", "t.v."], TOKENIZER)
    assert builder.of_caption("a cat", [(2, 5)]) == build_caption_prompt("a cat", TOKENIZER, phrases=[(2, 5)])
    assert builder.caption_length("a cat") == len(builder.of_caption("a cat")) == 5


def test_a_builder_from_a_config(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_grounding_dino_config(cfg)
    assert PromptBuilder.from_config(cfg) == PromptBuilder()
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n.\ncat\n")
    options = cfg.MODEL.TEXT_ENCODER
    options.VOCABULARY, options.MAX_TOKENS, options.SUB_SENTENCE_ON = str(vocabulary), 5, False
    builder = PromptBuilder.from_config(cfg)
    assert [prompt.input_ids for prompt in builder.of_categories(["cat"] * 3)] == [(2, 5, 4, 5, 3), (2, 5, 3)]


# ---------------------------------------------------------------------------------------------- asked once more


def test_the_last_prompts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "name", "nobody", "else", "asks", "for"]
    first, chunks, caption = GLIP.of_categories(names), GLIP.of_categories(names, 2), GLIP.of_caption("nobody asks")
    monkeypatch.setattr(type(TOKENIZER), "encode", None)  # calling it would fail
    assert GLIP.of_categories(tuple(names))[0] is first[0] and GLIP.of_caption("nobody asks") is caption
    assert [one is other for one, other in zip(GLIP.of_categories(names, 2), chunks, strict=True)] == [True] * 3
    first.clear()
    assert len(GLIP.of_categories(names)) == 1  # the list is the caller's own
    assert PromptBuilder().of_categories(names) != GLIP.of_categories(names)


@pytest.mark.parametrize("names", ["cat", ["cat", 3], ["cat", ["dog"]], [b"cat"]])
def test_what_is_no_list_of_names_is_refused_every_time(names: object) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="categories must be a list of names|category . must be a string"):
            GLIP.of_categories(names)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ValueError, match="the list of categories is empty"):
            GLIP.of_categories([])
