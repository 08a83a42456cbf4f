from grounding_dino.data.text_sampling import TextSampler, alternatives, name_cost, swap_sides
from grounding_dino.text.prompt import build_category_prompts
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest

NAMES = ["cat", "dog", "traffic light", "Hot  dog", "zebra", "tv"]


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def test_costs_add_up_to_the_length_of_the_prompt():
    tokenizer = build_tokenizer()
    (prompt,) = build_category_prompts(NAMES, tokenizer)
    assert 2 + sum(name_cost(name, tokenizer) for name in NAMES) == len(prompt)


def test_a_prompt_of_one_sentence_has_room_for_one_more_token():
    """GLIP's: no period follows the last name."""
    for sub_sentence, most in ((True, 1), (False, 2)):
        prompts = PromptBuilder(max_tokens=2 + 3, sub_sentence=sub_sentence)
        chosen = TextSampler(prompts=prompts).sample_categories(["cat", "dog", "zebra"], {0, 1, 2})
        assert len(chosen) == most
        (prompt,) = prompts.of_categories(["cat", "dog", "zebra"][:most])
        assert len(prompt) <= prompts.max_tokens


def test_all_names_are_listed_by_default_in_random_order():
    orders = {tuple(TextSampler().sample_categories(NAMES, {1})) for _ in range(10)}
    assert len(orders) > 1
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert TextSampler(shuffle=False).sample_categories(NAMES, {4, 1}) == list(range(6))


def test_the_number_of_negatives_is_full_or_uniform():
    sampler = TextSampler(num_negatives=4, full_probability=0.5)
    counts = [len(sampler.sample_categories(NAMES, {1})) - 1 for _ in range(400)]
    assert set(counts) == {1, 2, 3, 4}
    assert np.mean(np.equal(counts, 4)) == pytest.approx(0.5 + 0.5 / 4, abs=0.08)
    always = TextSampler(num_negatives=4, full_probability=1.0)
    assert {len(always.sample_categories(NAMES, {1})) for _ in range(20)} == {5}
    assert TextSampler(num_negatives=0).sample_categories(NAMES, {3}) == [3]


def test_an_empty_picture_gets_a_name_to_say_no_to():
    assert len(TextSampler(num_negatives=0).sample_categories(NAMES, ())) == 1
    assert TextSampler().sample_categories(["nucleus"], ()) == [0]


def test_positives_come_first_within_the_token_budget():
    sampler = TextSampler(prompts=PromptBuilder(max_tokens=2 + 2 + 3))
    for _ in range(10):
        chosen = sampler.sample_categories(NAMES, {0, 2})
        assert sorted(chosen) == [0, 2]
    crowded = TextSampler(prompts=PromptBuilder(max_tokens=2 + 4))
    kept = {tuple(crowded.sample_categories(NAMES, {0, 1, 4})) for _ in range(30)}
    assert all(len(chosen) <= 2 and set(chosen) <= {0, 1, 4} for chosen in kept) and len(kept) > 1


def test_a_second_entry_of_a_present_name_is_no_negative():
    assert sorted(TextSampler().sample_categories(["cat", "Cat ", "dog"], {0})) == [0, 2]
    assert sorted(TextSampler().sample_categories(["hot dog", "Hot  dog", "dog"], {0})) == [0, 2]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cup/mug", ("cup", "mug")),
        ("Machinery Vehicle / Truck", ("Machinery Vehicle", "Truck")),
        ("/cup/", ("cup",)),
        ("cat", ("cat",)),
        ("/", ("/",)),
    ],
)
def test_the_names_that_a_slash_divides(name, parts):
    assert alternatives(name) == parts


def test_split_names_are_asked_for_by_either_part():
    names = ["cup/mug", "cat"]
    asked = {tuple(TextSampler(split_names=True).word(names)) for _ in range(20)}
    assert asked == {("cup", "cat"), ("mug", "cat")}
    assert TextSampler().word(names) == names


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 6), ({"num_negatives": 2}, 4), ({"num_negatives": 0}, 2), ({"prompts": PromptBuilder(max_tokens=2 + 5)}, 2)],
)
def test_the_most_names_of_a_prompt_are_known_beforehand(options, most):
    sampler = TextSampler(**options)
    drawn = [len(sampler.sample_categories(NAMES, {0, 1})) for _ in range(60)]
    assert max(drawn) == most == sampler.most_categories(NAMES, 2)


def test_the_most_expressions_of_a_prompt_are_known_beforehand():
    captions, objects = ["the red star", "the star", "the ring", "the lowest shape"], ["a", "a", "b", "c"]
    for sampler, most in ((TextSampler(), 3), (TextSampler(prompts=PromptBuilder(max_tokens=2 + 6)), 2)):
        assert max(len(sampler.sample_expressions(captions, objects)) for _ in range(60)) == most
        assert sampler.most_expressions(captions, objects) == most


def test_expressions_of_one_prompt_are_about_different_objects():
    captions, objects = ["the red star", "the star", "the ring", "the lowest shape"], ["a", "a", "b", "b"]
    drawn = [TextSampler().sample_expressions(captions, objects) for _ in range(40)]
    assert {len(indices) for indices in drawn} == {1, 2}
    assert all(len({objects[index] for index in indices}) == len(indices) for indices in drawn)
    assert TextSampler().sample_expressions([], []) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_negatives": -2}, "is -2"),
        ({"full_probability": 1.5}, "is 1.5"),
        ({"prompts": PromptBuilder(max_tokens=3)}, "3 tokens"),
    ],
)
def test_parameters_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TextSampler(**options)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the star left of the ring", "the star right of the ring"),
        ("Left hand, the RIGHT one", "Right hand, the LEFT one"),
        ("the leftmost and the rightmost", "the rightmost and the leftmost"),
        ("bright leftover copyright", "bright leftover copyright"),
        ("", ""),
    ],
)
def test_sides_are_swapped_as_whole_words(text, mirrored):
    assert swap_sides(text)[0] == mirrored
    assert swap_sides(mirrored)[0] == text


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the star above the left ring", "the star below the left ring"),
        ("Top shelf, the BOTTOM one", "Bottom shelf, the TOP one"),
        ("topmost, upper, uppermost, highest", "bottommost, lower, lowermost, lowest"),
        ("stop flower laptop", "stop flower laptop"),
    ],
)
def test_heights_are_swapped_only_in_a_picture_turned_upside_down(text, mirrored):
    assert swap_sides(text, horizontal=False, vertical=True)[0] == mirrored
    assert swap_sides(mirrored, horizontal=False, vertical=True)[0] == text
    assert swap_sides(text, horizontal=False)[0] == text
    assert "left" not in swap_sides(text, vertical=True)[0]


def test_spans_move_along():
    text = "a left shoe and a right shoe"
    words, spans = swap_sides(text, [(2, 11), (18, 28), (0, 1), (0, len(text))])
    assert [words[begin:end] for begin, end in spans] == ["right shoe", "left shoe", "a", words]
