import copy
import json
import pickle
from pathlib import Path

from grounding_dino.text.tokenizer import build_tokenizer

import pytest

REFERENCE = Path(__file__).parents[1] / "reference" / "grounding_dino"
CASES = json.loads((REFERENCE / "text_cases.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("case", CASES["preprocessed_prompts"], ids=lambda case: case["prompt"][:20])
def test_token_ids_are_the_authors(tokenizer, case):
    encoding = tokenizer.encode(case["caption"])
    assert list(encoding.ids[:256]) == case["input_ids"]
    assert len(encoding) == case["length_before_truncation"]


def test_special_ids(tokenizer):
    assert tokenizer.delimiter_ids == set(CASES["special_token_ids"])
    assert tokenizer.size == 30522


def test_offsets_point_into_the_given_text(tokenizer):
    text = "  Na\u00efve  T-shirt\u3002\u732b"
    encoding = tokenizer.encode(text)
    pieces = [text[start:end] for start, end in encoding.offsets]
    assert pieces == ["", "Na\u00efve", "T", "-", "shirt", "\u3002", "\u732b", ""]


@pytest.mark.parametrize("text", ["[SEP]", "[CLS] cat", "[MASK]", "[PAD]"])
def test_special_tokens_in_a_text_are_ordinary(tokenizer, text):
    inner = tokenizer.encode(text).ids[1:-1]
    assert not {0, 101, 102, 103} & set(inner)


@pytest.mark.parametrize("text", ["", " ", "\x00", "\u200b\ufeff", "\ud83d", "\u0301"])
def test_text_without_tokens(tokenizer, text):
    assert tokenizer.encode(text).ids == (101, 102)


def test_lone_surrogates_keep_the_offsets(tokenizer):
    assert tokenizer.encode("\ud83d cat").offsets[1] == (2, 5)


def test_a_word_of_more_than_100_characters_is_unknown(tokenizer):
    assert tokenizer.encode("a" * 101).ids == (101, tokenizer.unknown_id, 102)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("don't stop !", "don't stop!"),
        ("a , b ; c .", "a, b ; c."),
        ("T-shirt", "t - shirt"),
        ("it's we've", "it's we've"),
    ],
)
def test_decoding_takes_spaces_back(tokenizer, text, decoded):
    assert tokenizer.decode(tokenizer.encode(text).ids[1:-1]) == decoded


def test_decoding_writes_special_tokens_out(tokenizer):
    assert tokenizer.decode([101, 4937, 102]) == "[CLS] cat [SEP]"
    assert tokenizer.decode([]) == ""


def test_one_tokenizer_per_vocabulary_survives_copy_and_pickle(tokenizer):
    assert build_tokenizer() is tokenizer
    assert copy.deepcopy(tokenizer) is tokenizer
    assert pickle.loads(pickle.dumps(tokenizer)).encode("cat").ids == (101, 4937, 102)


def test_own_vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n.\r\ncat\r\n##s\r\n")
    tokenizer = build_tokenizer(str(path))
    assert tokenizer.size == 7
    assert tokenizer.encode("Cats dog.").ids == (2, 5, 6, 1, 4, 3)
    assert tokenizer.delimiter_ids == {2, 3, 4}


def test_vocabulary_that_cannot_serve(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vocabulary file 'nowhere.txt'"):
        build_tokenizer("nowhere.txt")
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\ncat\n")
    with pytest.raises(ValueError, match=r"lacks \['\[CLS\]', '\[SEP\]', '\.'\]"):
        build_tokenizer(str(path))
    path.write_text("cat\n[UNK]\n[CLS]\n[SEP]\n.\n[PAD]\n")
    with pytest.raises(ValueError, match="must be the first"):
        build_tokenizer(str(path))


def test_text_must_be_a_string(tokenizer):
    with pytest.raises(TypeError, match="must be a string, not int: 3"):
        tokenizer.encode(3)
