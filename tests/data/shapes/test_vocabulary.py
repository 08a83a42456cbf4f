from grounding_dino.data.shapes.vocabulary import COLORS, HELD_OUT_PAIRS, SHAPES, TRAIN_PAIRS, pair_name
from grounding_dino.text.prompt import build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer


def test_held_out_pairs_are_disjoint_from_training_which_still_has_every_color_and_shape():
    assert len(SHAPES) >= 8 and len(COLORS) >= 10
    assert not set(HELD_OUT_PAIRS) & set(TRAIN_PAIRS)
    assert len(HELD_OUT_PAIRS) + len(TRAIN_PAIRS) == len(SHAPES) * len(COLORS)
    for pairs in (HELD_OUT_PAIRS, TRAIN_PAIRS):
        assert {color for color, _ in pairs} == set(COLORS)
        assert {shape for _, shape in pairs} == set(SHAPES)


def test_all_training_names_fit_into_one_prompt():
    (prompt,) = build_category_prompts([pair_name(pair) for pair in TRAIN_PAIRS], build_tokenizer())
    assert len(prompt) == 2 + 3 * len(TRAIN_PAIRS)
