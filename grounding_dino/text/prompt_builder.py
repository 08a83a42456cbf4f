"""How one text encoder reads prompts: its vocabulary, its longest prompt, and what a token may attend to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grounding_dino.structures import Prompt
from grounding_dino.text.prompt import MAX_TOKENS, CharacterSpan, build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import WordPieceTokenizer


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of one model.

    Attributes:
        max_tokens: of a prompt, [CLS] and [SEP] included.
        sub_sentence: tokens attend inside their own phrase (Grounding DINO); else to the whole text, as BERT was
            trained, and no period closes it (GLIP).
    """

    tokenizer: WordPieceTokenizer
    max_tokens: int = MAX_TOKENS
    sub_sentence: bool = True

    def of_categories(self, names: Sequence[str], names_per_prompt: int = 0) -> list[Prompt]:
        """As :func:`build_category_prompts`."""
        prompts = build_category_prompts(names, self.tokenizer, self.max_tokens, names_per_prompt)
        return prompts if self.sub_sentence else [self._as_one_sentence(prompt) for prompt in prompts]

    def of_caption(
        self, caption: str, phrases: Sequence[CharacterSpan | Sequence[CharacterSpan]] | None = None
    ) -> Prompt:
        """As :func:`build_caption_prompt`."""
        prompt = build_caption_prompt(caption, self.tokenizer, self.max_tokens, phrases)
        return prompt if self.sub_sentence else self._as_one_sentence(prompt)

    def _as_one_sentence(self, prompt: Prompt) -> Prompt:
        """Every token attends to every other, positions count through, and the closing period is gone.

        A period that a phrase names ("u.s.") stays.
        """
        ids = list(prompt.input_ids)
        last = len(ids) - 2
        named = any(start <= last < end for spans in prompt.token_spans for start, end in spans)
        if ids[last:] == [self.tokenizer.period_id, self.tokenizer.end_id] and last > 1 and not named:
            del ids[last]
        return dataclasses.replace(
            prompt,
            input_ids=tuple(ids),
            position_ids=tuple(range(len(ids))),
            attention_ranges=((0, len(ids)),) * len(ids),
        )
