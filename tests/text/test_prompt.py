import json
import logging
from pathlib import Path

from grounding_dino.structures import Prompt
from grounding_dino.text.batch import collate_prompts, positive_map
from grounding_dino.text.prompt import (
    build_caption_prompt,
    build_category_prompts,
    preprocess_caption,
    tokenize_caption,
)
from grounding_dino.text.segments import segment_tokens
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = json.loads((REFERENCE / "grounding_dino" / "text_cases.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def as_lists(spans) -> list:
    return [None if span is None else list(span) for span in spans]


def words(prompt: Prompt, tokenizer) -> list[str]:
    """The decoded tokens of each category or phrase."""
    return [
        " | ".join(tokenizer.decode(prompt.input_ids[start:end]) for start, end in spans)
        for spans in prompt.token_spans
    ]


# ----------------------------------------------------------------------------- captions, against the authors


@pytest.mark.parametrize("case", CASES["preprocessed_prompts"], ids=lambda case: case["prompt"][:20])
def test_preprocessed_captions(tokenizer, case):
    caption = preprocess_caption(case["prompt"])
    prompt = tokenize_caption(caption, tokenizer)
    assert caption == prompt.caption == case["caption"]
    assert list(prompt.input_ids) == case["input_ids"]
    assert list(prompt.position_ids) == case["position_ids"]
    assert as_lists(prompt.attention_ranges) == case["attend_range"]
    assert as_lists(segment_tokens(tokenizer.encode(caption).ids, tokenizer).phrases) == case["phrase_spans"]
    if any(character.isalnum() for character in caption):
        assert build_caption_prompt(case["prompt"], tokenizer) == prompt


@pytest.mark.parametrize("case", CASES["raw_single_captions"], ids=lambda case: case["caption"])
def test_captions_as_written(tokenizer, case):
    prompt = tokenize_caption(case["caption"], tokenizer)
    assert list(prompt.input_ids) == case["input_ids"]
    assert list(prompt.position_ids) == case["position_ids"]
    assert as_lists(prompt.attention_ranges) == case["attend_range"]
    phrases = segment_tokens(prompt.input_ids, tokenizer).phrases
    assert as_lists(phrases) == (case["phrase_spans"] or [])  # the authors' code raises where there is none


@pytest.mark.parametrize("case", CASES["raw_batches"], ids=lambda case: "+".join(case["captions"]))
def test_batches_as_written(tokenizer, case):
    width = case["length_before_truncation"]
    prompts = [tokenize_caption(caption, tokenizer, num_columns=width) for caption in case["captions"]]
    text = collate_prompts(prompts)
    assert text.input_ids.tolist() == case["input_ids"]
    assert (~text.padding_mask).int().tolist() == case["attention_mask"]
    assert text.position_ids.tolist() == case["position_ids"]
    columns = torch.arange(width)
    start, end = torch.tensor(case["attend_range"]).unbind(-1)
    assert torch.equal(text.attention_mask, (columns >= start[..., None]) & (columns < end[..., None]))
    for prompt, spans in zip(prompts, case["phrase_spans"], strict=True):
        assert as_lists(segment_tokens(prompt.input_ids, tokenizer, width).phrases) == spans


@pytest.mark.parametrize("name", ["gdino", "mmgdino"])
def test_masks_and_positions_of_mmdet(tokenizer, name):
    golden = np.load(REFERENCE / "mmdet" / f"golden_mmdet_{name}_swint.npz")
    text = collate_prompts([build_caption_prompt("bench. car. ", tokenizer)] * 2)
    assert np.array_equal(text.position_ids, golden["text_position_ids"])
    assert np.array_equal(text.attention_mask, golden["text_self_attention_mask"])


def test_full_size_case(tokenizer):
    golden = np.load(REFERENCE / "grounding_dino" / "swin_t_case1.npz")
    text = collate_prompts([build_caption_prompt(str(caption), tokenizer) for caption in golden["captions"]])
    assert np.array_equal(text.input_ids, golden["input_ids"])
    assert np.array_equal(~text.padding_mask, golden["attention_mask"])
    assert np.array_equal(text.position_ids, golden["position_ids"])
    assert np.array_equal(text.attention_mask, golden["text_self_attention_masks"])


# -------------------------------------------------------------------------------------------- captions, ours


@pytest.mark.parametrize("caption", ["cat . dog", "cat", "Two cats.", "what is this?"])
def test_a_caption_prompt_is_the_same_in_any_batch(tokenizer, caption):
    prompt = build_caption_prompt(caption, tokenizer)
    for width in (len(prompt), len(prompt) + 5):
        assert tokenize_caption(prompt.caption, tokenizer, num_columns=width) == prompt


@pytest.mark.parametrize("caption", ["", " \t\n", ".", "...", " ?!,; ", "\u3002", "\u0301", "\u200b"])
def test_a_caption_without_a_word_is_refused(tokenizer, caption):
    with pytest.raises(ValueError, match="contains no word; say what to look for"):
        build_caption_prompt(caption, tokenizer)


def test_a_caption_must_be_a_string(tokenizer):
    with pytest.raises(TypeError, match="a caption must be a string, not list"):
        build_caption_prompt(["cat"], tokenizer)


def test_a_long_caption_is_cut_with_a_warning(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        prompt = build_caption_prompt("one two three " * 100, tokenizer)
    assert len(prompt) == 256
    assert prompt.attention_ranges[-1] == (1, 256)
    assert "a caption of 303 tokens is cut to 256" in caplog.text


def test_an_unknown_caption_is_kept_with_a_warning(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        prompt = build_caption_prompt("\U0001f984\U0001f984", tokenizer)
    assert prompt.input_ids == (101, 100, 1012, 102)
    assert "no part of the caption '\U0001f984\U0001f984'" in caplog.text


def test_phrases_become_token_spans(tokenizer):
    caption = "  The Antidisestablishmentarianism of a RED bus"
    spans = [(2, 34), [(2, 5), (44, 47)], [38, 47]]
    prompt = build_caption_prompt(caption, tokenizer, phrases=spans)
    assert words(prompt, tokenizer) == ["the antidisestablishmentarianism", "the | bus", "a red bus"]
    assert prompt.names == ("The Antidisestablishmentarianism", "The bus", "a RED bus")
    assert prompt.category_indices == (0, 1, 2)


def test_phrases_survive_a_lower_casing_that_lengthens(tokenizer):
    caption = " \u0130\u0130 cat \u0130 dog"  # each capital i with dot becomes two characters
    prompt = build_caption_prompt(caption, tokenizer, phrases=[(4, 7), (10, 13)])
    assert words(prompt, tokenizer) == ["cat", "dog"]


@pytest.mark.parametrize("phrase", [(0, 0), (2, 1), (-1, 2), (0, 99), [], [(0, 3), (5, 99)]])
def test_a_phrase_outside_the_caption_is_refused(tokenizer, phrase):
    with pytest.raises(ValueError, match="phrase 1"):
        build_caption_prompt("cat dog", tokenizer, phrases=[(0, 3), phrase])


def test_a_phrase_without_a_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="phrase 0 .* covers no token"):
        build_caption_prompt("cat dog", tokenizer, phrases=[(3, 4)])


def test_a_phrase_beyond_the_cut_has_no_tokens(tokenizer, caplog):
    caption = "cat " * 300 + "dog"
    with caplog.at_level(logging.WARNING):
        prompt = build_caption_prompt(caption, tokenizer, phrases=[(0, 3), (1200, 1203)])
    assert prompt.token_spans == (((1, 2),), ())
    assert positive_map(prompt, 256).sum(1).tolist() == [1, 0]
    assert "phrase 1 keeps 0 of its 1 tokens" in caplog.text


# ------------------------------------------------------------------------------------------------ categories


@pytest.mark.parametrize("case", CASES["category_lists"], ids=lambda case: "+".join(case["categories"])[:30])
def test_categories_are_written_and_found_as_by_the_authors(tokenizer, case):
    names = [name for name in case["categories"] if name]  # an empty name is refused, the authors drop it
    (prompt,) = build_category_prompts(names, tokenizer, max_tokens=512)
    assert prompt.caption == case["caption"].lower()
    assert len(prompt) == case["num_tokens"]
    as_caption = tokenize_caption(prompt.caption, tokenizer, max_tokens=512)
    assert (prompt.input_ids, prompt.position_ids) == (as_caption.input_ids, as_caption.position_ids)
    assert prompt.attention_ranges == as_caption.attention_ranges
    rows = positive_map(prompt, 512)[:, :256]  # the authors drop what lies beyond
    found = {name: row.nonzero().flatten().tolist() for name, row in zip(names, rows, strict=True)}  # last repeat wins
    expected = case["positive_token_indices"]
    assert found == {name: expected[name.lower() if case["force_lowercase"] else name] for name in names}


@pytest.mark.parametrize(
    "names",
    [
        ["t.v.", "what?", "u.s. flag", "cat"],
        ["cat", "cat", "cat"],
        ["cat", "black cat", "cat food"],
        ["and/or", "a_b", "(x) [y]", "100%", "#1", "[SEP]"],
        ["Stra\u00dfe", "\u041a\u041e\u0428\u041a\u0410", "\u0393\u03ac\u03c4\u03b1\u03a3", "\u732b\u3068\u72ac"],
        ["emoji \U0001f600", "\u0301accent", "\u200bcat", "line\nbreak"],
    ],
)
def test_every_name_keeps_its_own_span_and_segment(tokenizer, names):
    (prompt,) = build_category_prompts(names, tokenizer)
    assert prompt.names == tuple(names)
    assert prompt.category_indices == tuple(range(len(names)))
    assert prompt.input_ids == tokenizer.encode(prompt.caption).ids
    position = 1
    for name, spans in zip(names, prompt.token_spans, strict=True):
        alone = tokenizer.encode(name.lower()).ids[1:-1]
        ((start, end),) = spans
        assert start == position
        assert prompt.input_ids[start:end] == alone
        assert prompt.input_ids[end] == tokenizer.period_id
        assert set(prompt.attention_ranges[start : end + 1]) == {(start, end + 1)}
        assert prompt.position_ids[start : end + 1] == tuple(range(end + 1 - start))
        position = end + 1
    assert position == len(prompt) - 1


def test_a_long_list_is_split_at_names_into_as_few_prompts_as_possible(tokenizer):
    names = [f"big thing{i}" for i in range(300)]
    prompts = build_category_prompts(names, tokenizer)
    assert [index for prompt in prompts for index in prompt.category_indices] == list(range(300))
    assert [name for prompt in prompts for name in prompt.names] == names
    assert all(len(prompt) <= 256 for prompt in prompts)
    lengths = [len(tokenizer.encode(name)) - 1 for name in names]  # with the period
    for prompt, following in zip(prompts[:-1], prompts[1:], strict=True):
        assert len(prompt) + lengths[following.category_indices[0]] > 256


def test_prompts_of_so_many_names_at_most(tokenizer):
    names = [f"thing{i}" for i in range(7)]
    prompts = build_category_prompts(names, tokenizer, names_per_prompt=3)
    assert [prompt.category_indices for prompt in prompts] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert len(build_category_prompts(names, tokenizer, max_tokens=8, names_per_prompt=3)) > 3  # the tokens still count
    with pytest.raises(ValueError, match="-1 names a prompt"):
        build_category_prompts(names, tokenizer, names_per_prompt=-1)


def test_a_list_that_fits_exactly_stays_whole(tokenizer):
    assert [len(prompt) for prompt in build_category_prompts(["cat"] * 127, tokenizer)] == [256]
    assert [len(prompt) for prompt in build_category_prompts(["cat"] * 128, tokenizer)] == [256, 4]


def test_the_longest_name(tokenizer):
    (prompt,) = build_category_prompts([" ".join(["cat"] * 253)], tokenizer)
    assert len(prompt) == 256
    with pytest.raises(ValueError, match=r"category 1 \('cat cat.*has 254 tokens, but a prompt of 256 tokens holds"):
        build_category_prompts(["dog", " ".join(["cat"] * 254)], tokenizer)


def test_no_category_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the list of categories is empty"):
        build_category_prompts([], tokenizer)


@pytest.mark.parametrize("name", ["", " ", "\t\n", ".", "?", "...", "\u200b", "\u0301", "\ud83d"])
def test_a_name_without_a_word_is_refused(tokenizer, name):
    with pytest.raises(ValueError, match=r"category 1 \(.*\) contains no word"):
        build_category_prompts(["cat", name], tokenizer)


def test_names_must_be_a_list_of_strings(tokenizer):
    with pytest.raises(TypeError, match="not the string 'cat . dog'"):
        build_category_prompts("cat . dog", tokenizer)
    with pytest.raises(TypeError, match="category 1 must be a string, not int: 7"):
        build_category_prompts(["cat", 7], tokenizer)


def test_unknown_names_are_kept_with_one_warning_each(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (prompt,) = build_category_prompts(["\U0001f996", "cat", "\U0001f995"], tokenizer)
    assert prompt.input_ids == (101, 100, 1012, 4937, 1012, 100, 1012, 102)
    assert [record.args[1] for record in caplog.records] == ["\U0001f996", "\U0001f995"]


# --------------------------------------------------------------------------------------------------- tensors


def test_collating_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        collate_prompts([])


def test_collated_types(tokenizer):
    text = collate_prompts([*build_category_prompts(["cat"], tokenizer), build_caption_prompt("a red bus", tokenizer)])
    assert text.input_ids.dtype == text.position_ids.dtype == torch.int64
    assert text.padding_mask.dtype == text.attention_mask.dtype == torch.bool
    assert text.attention_mask.shape == (2, 6, 6)
    assert text.padding_mask.tolist() == [[False] * 4 + [True] * 2, [False] * 6]
    assert torch.equal(text.attention_mask[0, 4:], torch.eye(6, dtype=torch.bool)[4:])


def test_positive_map(tokenizer):
    (prompt,) = build_category_prompts(["traffic light", "cat"], tokenizer)
    assert positive_map(prompt, 9).tolist() == [[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="6 columns is too narrow for a prompt of 7 tokens"):
        positive_map(prompt, 6)
