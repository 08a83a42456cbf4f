import json
from pathlib import Path

from grounding_dino.text.category_scores import category_scores
from grounding_dino.text.phrases import best_words, decode_phrases, decode_token_mask, phrases_to_categories
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts, preprocess_caption
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch

REFERENCE = Path(__file__).parents[1] / "reference" / "grounding_dino"
CASES = json.loads((REFERENCE / "text_cases.json").read_text())
DEFAULT_BORDERS = [
    case
    for case in CASES["phrases_from_posmap"]
    if (case["left_idx"], case["right_idx"]) == (0, 255) and not case["raises_index_error"]
]
POSTPROCESS = json.loads((REFERENCE / "postprocess.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def arrays():
    return np.load(REFERENCE / "postprocess.npz")


@pytest.mark.parametrize(
    "case", CASES["phrases_from_posmap"], ids=lambda case: f"{case['caption'][:9]}{case['true_indices']}"
)
def test_selected_tokens_are_decoded_as_by_the_authors(tokenizer, case):
    ids = tokenizer.encode(case["caption"]).ids
    mask = torch.zeros(256, dtype=torch.bool)
    mask[case["true_indices"]] = True
    if case["raises_index_error"]:
        with pytest.raises(IndexError, match="token 40 is selected, but the caption has only 12 tokens"):
            decode_token_mask(mask, ids, tokenizer)
    else:
        decoded = decode_token_mask(mask, ids, tokenizer, case["left_idx"], case["right_idx"])
        assert decoded == case["decoded"]
        assert decoded.replace(".", "") == case["phrase"]


@pytest.mark.parametrize("case", DEFAULT_BORDERS, ids=lambda case: f"{case['caption'][:9]}{case['true_indices']}")
def test_phrases_of_thresholded_logits(tokenizer, case):
    prompt = build_caption_prompt(case["caption"], tokenizer)
    assert prompt.caption == preprocess_caption(case["caption"])
    logits = torch.full((1, 256), -4.0)
    logits[0, case["true_indices"]] = 4.0
    logits[0, len(prompt) :] = -torch.inf
    assert decode_phrases(logits, prompt, tokenizer, 0.25) == [case["phrase"]]


@pytest.mark.parametrize(
    "run", POSTPROCESS["runs"], ids=lambda run: f"{run['text_threshold']}-{run['remove_combined']}"
)
def test_phrases_of_queries(tokenizer, arrays, run):
    prompt = build_caption_prompt(POSTPROCESS["caption"], tokenizer)
    assert prompt.caption == POSTPROCESS["model_caption"]
    assert list(prompt.input_ids) == POSTPROCESS["input_ids"]
    logits = torch.full((60, 256), -torch.inf)
    logits[:, : len(prompt)] = torch.from_numpy(arrays["logits"])
    kept = logits[run["kept_queries"]]
    for width in (len(prompt), 256):
        phrases = decode_phrases(kept[:, :width], prompt, tokenizer, run["text_threshold"], run["remove_combined"])
        assert phrases == run["phrases"]


def test_remove_combined_at_the_borders(tokenizer):
    prompt = build_caption_prompt("cat . dog", tokenizer)  # [CLS] cat . dog . [SEP]
    logits = torch.full((6, 6), 1.0)
    logits[range(6), range(6)] = 2.0  # query i is best at token i
    assert decode_phrases(logits, prompt, tokenizer, 0.5, remove_combined=True) == ["", "cat", "cat", "dog", "dog", ""]


def test_remove_combined_in_a_cut_caption(tokenizer):
    prompt = build_caption_prompt("cat dog " * 4, tokenizer, max_tokens=5)  # [CLS] cat dog cat dog, no delimiter after
    logits = torch.tensor([[0.0, 1.0, 2.0, -9.0, 1.0]])
    assert decode_phrases(logits, prompt, tokenizer, 0.5, remove_combined=True) == ["cat dog dog"]


@pytest.mark.parametrize(
    ("caption", "best", "word"),
    [
        ("a red circle .", 2, "red"),
        ("a red circle .", 4, "a"),  # the period itself is no word
        ("xylographers, two", 2, "xylographers"),  # a piece of a word
        ("🐈 .", 1, "🐈"),  # unknown, and no letter
    ],
)
def test_best_words(tokenizer, caption, best, word):
    prompt = build_caption_prompt(caption, tokenizer)
    logits = torch.full((1, len(prompt) + 2), -9.0)
    logits[0, best] = -1.0
    assert best_words(logits, prompt, tokenizer) == [word]
    assert best_words(logits[:0], prompt, tokenizer) == []


def test_no_queries(tokenizer):
    prompt = build_caption_prompt("cat", tokenizer)
    for remove_combined in (False, True):
        assert decode_phrases(torch.zeros(0, 4), prompt, tokenizer, 0.25, remove_combined) == []
    assert category_scores(torch.zeros(0, 4), build_category_prompts(["cat"], tokenizer)[0]).shape == (0, 1)


def test_logits_of_another_prompt_are_refused(tokenizer):
    (prompt,) = build_category_prompts(["cat"], tokenizer)
    with pytest.raises(ValueError, match="logits over 3 tokens do not belong to a prompt of 4 tokens"):
        category_scores(torch.zeros(2, 3), prompt)
    with pytest.raises(ValueError, match="logits over 3 tokens do not belong"):
        decode_phrases(torch.zeros(2, 3), prompt, tokenizer, 0.25)


@pytest.mark.parametrize("case", CASES["phrases2classes"], ids=lambda case: case["caption"])
def test_phrases_to_categories(case):
    assert phrases_to_categories(case["phrases"], case["classes"]) == case["class_ids"]


def test_category_scores_equal_the_authors_positive_map(tokenizer, arrays):
    names = CASES["category_lists"][-1]["categories"]
    (prompt,) = build_category_prompts(names, tokenizer)
    scores = category_scores(torch.from_numpy(arrays["coco_logits"]), prompt)  # (2, 200, 80)
    reference = arrays["coco_prob_to_label"]  # every 20th query; unused COCO ids are 0
    used = np.abs(reference).sum((0, 1)) > 0
    assert used.sum() == 80
    np.testing.assert_allclose(scores[:, ::20].numpy(), reference[..., used], atol=2e-6)


def test_a_category_is_scored_over_all_its_tokens(tokenizer):
    (prompt,) = build_category_prompts(["t.v.", "cat"], tokenizer)  # [CLS] t . v . . cat . [SEP]
    logits = torch.full((1, 256), -torch.inf)
    logits[0, : len(prompt)] = torch.logit(torch.tensor([0.9, 0.1, 0.2, 0.3, 0.4, 0.9, 0.7, 0.9, 0.9]))
    assert torch.allclose(category_scores(logits, prompt), torch.tensor([[0.25, 0.7]]))


def test_a_repeated_category_has_exactly_the_score_of_the_first(tokenizer):
    (prompt,) = build_category_prompts(["cat", "dog", "Cat"], tokenizer)
    logits = torch.tensor([[0.0, 1.0, 0.0, 0.5, 0.0, 1.0001, 0.0, 0.0]])
    scores = category_scores(logits, prompt)
    assert scores[0, 0] == scores[0, 2] == torch.tensor(1.0).sigmoid()
    assert scores.argmax() == 0


def test_half_precision_logits_are_scored_in_float32(tokenizer):
    (prompt,) = build_category_prompts(["cat"], tokenizer)
    assert category_scores(torch.zeros(3, 4, dtype=torch.bfloat16), prompt).dtype == torch.float32


def test_best_token_score():
    tokenizer = build_tokenizer()
    (pair,) = build_category_prompts(["red cat", "dog"], tokenizer)  # [CLS] red cat . dog . [SEP]
    logits = torch.tensor([[9.0, 1, 2, 8, -1, 8, 9]])
    expected = torch.tensor([[2.0, -1.0]]).sigmoid()
    torch.testing.assert_close(category_scores(logits, pair, "max"), expected)
    (alone,) = build_category_prompts(["red cat"], tokenizer)  # all tokens count where one thing is asked for
    assert category_scores(logits[:, :5], alone, "max").item() == pytest.approx(torch.tensor(9.0).sigmoid().item())
    with pytest.raises(ValueError, match="unknown token_score 'best'"):
        category_scores(logits, pair, "best")
