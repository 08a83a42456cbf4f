"""How one text encoder reads prompts: its vocabulary, its longest prompt, and what a token may attend to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grounding_dino.structures import Prompt
from grounding_dino.text.prompt import (
    MAX_TOKENS,
    CharacterSpan,
    build_caption_prompt,
    build_category_prompts,
    name_fault,
    names_budget,
    preprocess_caption,
)
from grounding_dino.text.tokenizer import WordPieceTokenizer, build_tokenizer

if TYPE_CHECKING:
    from detectron2.config import CfgNode


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of one model, and says what they hold.

    Attributes:
        max_tokens: of a prompt, [CLS] and [SEP] included.
        sub_sentence: tokens attend inside their own phrase (Grounding DINO); else to the whole text, as BERT was
            trained, and no period is added at its end (GLIP).
    """

    tokenizer: WordPieceTokenizer = dataclasses.field(default_factory=build_tokenizer)
    max_tokens: int = MAX_TOKENS
    sub_sentence: bool = True

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PromptBuilder:
        """That of the model which MODEL.TEXT_ENCODER describes.

        Raises:
            FileNotFoundError, ValueError: of its vocabulary, see :class:`WordPieceTokenizer`.
        """
        options = cfg.MODEL.TEXT_ENCODER
        return cls(build_tokenizer(options.VOCABULARY), options.MAX_TOKENS, options.SUB_SENTENCE_ON)

    @property
    def names_budget(self) -> int:
        """As :func:`names_budget`."""
        return names_budget(self.max_tokens, self.sub_sentence)

    def name_fault(self, name: str) -> str:
        """As :func:`name_fault`."""
        return name_fault(name, self.tokenizer, self.max_tokens, self.sub_sentence)

    def of_categories(self, names: Sequence[str], names_per_prompt: int = 0) -> list[Prompt]:
        """As :func:`build_category_prompts`; of the last lists of names the prompts are kept."""
        options = (self.tokenizer, self.max_tokens, names_per_prompt, self.sub_sentence)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            return build_category_prompts(names, *options)  # which says what is wrong
        return list(_kept_category_prompts(tuple(names), *options))

    def of_caption(
        self, caption: str, phrases: Sequence[CharacterSpan | Sequence[CharacterSpan]] | None = None
    ) -> Prompt:
        """As :func:`build_caption_prompt`; of the last captions without phrases the prompts are kept."""
        if phrases is None and isinstance(caption, str):
            return _kept_caption_prompt(caption, self.tokenizer, self.max_tokens, self.sub_sentence)
        return build_caption_prompt(caption, self.tokenizer, self.max_tokens, phrases, self.sub_sentence)

    def caption_length(self, caption: str) -> int:
        """Tokens of a caption before it is cut to `max_tokens`."""
        return len(self.tokenizer.encode(preprocess_caption(caption, self.sub_sentence)))


@functools.lru_cache(maxsize=64)
def _kept_category_prompts(
    names: tuple[str, ...], tokenizer: WordPieceTokenizer, max_tokens: int, names_per_prompt: int, sub_sentence: bool
) -> tuple[Prompt, ...]:
    """A folder of pictures, or a data set, is asked for the same names again and again."""
    return tuple(build_category_prompts(names, tokenizer, max_tokens, names_per_prompt, sub_sentence))


@functools.lru_cache(maxsize=64)
def _kept_caption_prompt(caption: str, tokenizer: WordPieceTokenizer, max_tokens: int, sub_sentence: bool) -> Prompt:
    return build_caption_prompt(caption, tokenizer, max_tokens, None, sub_sentence)
