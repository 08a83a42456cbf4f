"""WordPiece tokens of a text with their character offsets, from the vocabulary in the package: no network.

The `tokenizers` library is used directly, because the tokenizer classes of `transformers` changed their
constructors between major versions, and one of them maps every word to [UNK] in silence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEFAULT_VOCABULARY = "bert-base-uncased-vocab.txt"

# Spaces that decoding takes back around punctuation, in this order (the clean-up of BERT's own tokenizer).
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# Halves of a surrogate pair cannot be written as UTF-8; one replacement character each keeps the offsets.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text and the half-open character range of each; [CLS] and [SEP] have empty ranges."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)


class WordPieceTokenizer:
    """BERT's uncased tokenizer: lower-casing, accents stripped, punctuation split off, WordPiece.

    Special tokens are only ever added by this class: "[SEP]" inside a text is three ordinary tokens. The
    object is immutable and shared; copying it returns itself, pickling it stores the vocabulary's name.

    Args:
        vocabulary: a file with one token per line, or the name of a file in the package's assets; "" is the
            vocabulary of bert-base-uncased.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file lacks one of the tokens that prompts need.
    """

    def __init__(self, vocabulary: str = "") -> None:
        path = _vocabulary_path(vocabulary)
        tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        ids = {token: index for index, token in enumerate(tokens)}
        missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".") if token not in ids]
        if missing:
            raise ValueError(f"the vocabulary {path} lacks {missing}; give a WordPiece vocabulary, one token per line")
        if ids["[PAD]"] != 0:
            raise ValueError(f"[PAD] stands at line {ids['[PAD]'] + 1} of the vocabulary {path}; it must be the first")
        self.vocabulary = vocabulary
        self.size = len(tokens)
        self.unknown_id = ids["[UNK]"]
        self.start_id = ids["[CLS]"]
        self.end_id = ids["[SEP]"]
        self.period_id = ids["."]
        # A phrase of a caption ends at one of these.
        self.delimiter_ids = frozenset({self.start_id, self.end_id, self.period_id, ids.get("?", self.period_id)})
        self._tokens = tokens
        self._tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def encode(self, text: str) -> Encoding:
        """Tokens of `text` between [CLS] and [SEP], uncut."""
        if not isinstance(text, str):
            raise TypeError(f"a text to tokenize must be a string, not {type(text).__name__}: {text!r}")
        found = self._tokenizer.encode(_LONE_SURROGATE.sub("\ufffd", text), add_special_tokens=False)
        end = len(text)
        return Encoding(
            ids=(self.start_id, *found.ids, self.end_id),
            offsets=((0, 0), *((begin, stop) for begin, stop in found.offsets), (end, end)),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`: pieces joined, spaces before punctuation taken back, special tokens written out."""
        text = " ".join(self._tokens[index] for index in ids).replace(" ##", "")
        for spaced, closed in _CLEAN_UP:
            text = text.replace(spaced, closed)
        return text

    def __deepcopy__(self, memo: dict[int, object]) -> WordPieceTokenizer:
        return self

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return build_tokenizer, (self.vocabulary,)


def build_tokenizer(vocabulary: str = "") -> WordPieceTokenizer:
    """The tokenizer of a vocabulary file (see :class:`WordPieceTokenizer`); built once per process."""
    return _build_once(vocabulary)


@functools.lru_cache(maxsize=8)
def _build_once(vocabulary: str) -> WordPieceTokenizer:
    """Behind a function with a default: `lru_cache` takes a default that is left out for another argument."""
    return WordPieceTokenizer(vocabulary)


def _vocabulary_path(vocabulary: str) -> Path:
    name = vocabulary or DEFAULT_VOCABULARY
    for path in (Path(name).expanduser(), ASSETS / name) if vocabulary else (ASSETS / name,):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no vocabulary file {name!r}, here or in {ASSETS}; set MODEL.TEXT_ENCODER.VOCABULARY to a WordPiece "
        "vocabulary file, or to '' for the one of bert-base-uncased"
    )
