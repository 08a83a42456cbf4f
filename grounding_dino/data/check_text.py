"""Whether the texts of a data set fit into prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from grounding_dino.data.findings import ERROR, WARNING, Findings
from grounding_dino.data.mappers.own_text import phrases_of
from grounding_dino.data.text_sampling import name_cost
from grounding_dino.text.prompt import encode_name, normalised_name
from grounding_dino.text.prompt_builder import PromptBuilder

from detectron2.config import CfgNode


class TextCheck:
    """Names and captions, held against MODEL.TEXT_ENCODER.MAX_TOKENS."""

    def __init__(self, cfg: CfgNode, findings: Findings) -> None:
        self.prompts = PromptBuilder.from_config(cfg)
        self.tokenizer = self.prompts.tokenizer
        self.max_tokens = self.prompts.max_tokens
        self.findings = findings
        self.longest_name: tuple[int, str] = (0, "")
        self.longest_caption = 0

    def add_name(self, name: str, where: str) -> bool:
        """Check a category or an expression; whether a prompt can hold it."""
        fault = self.prompts.name_fault(name)
        tokens = encode_name(name, self.tokenizer)
        self.longest_name = max(self.longest_name, (len(tokens), name))
        if fault:
            self.findings.note(ERROR, "names that no prompt holds", f"{name[:80]!r} of {where} {fault}")
        elif self.tokenizer.unknown_id in tokens:
            self.findings.note(
                WARNING, "names with words that the vocabulary does not know", f"{name[:80]!r} of {where}"
            )
        return not fault

    def add_caption(self, record: dict[str, Any]) -> None:
        """Check a sentence: its length, and whether each phrase stands in what is left of it."""
        caption, where = record["caption"], record.get("file_name", "")
        try:
            with _quiet_prompts():
                prompt = self.prompts.of_caption(caption, phrases_of(record))
        except (TypeError, ValueError) as error:
            self.findings.note(ERROR, "captions that are no prompt", f"{where}: {error}")
            return
        length = self.prompts.caption_length(caption)
        self.longest_caption = max(self.longest_caption, length)
        if length > self.max_tokens:
            self.findings.note(
                WARNING, f"captions that are cut to {self.max_tokens} tokens", f"{where}, {length} tokens"
            )
        lost = sum(not spans for spans in prompt.token_spans)
        if lost:
            self.findings.note(WARNING, "phrases beyond the cut of their caption", f"{where}, {caption[:60]!r}", lost)

    def class_names(self, names: Sequence[str]) -> dict[str, Any]:
        """Check the names that a data set's prompts list; facts about the prompts."""
        usable = [name for name in names if self.add_name(name, "the categories")]
        written: dict[str, str] = {}
        for name in usable:
            other = written.setdefault(normalised_name(name), name)
            if other is not name:
                self.findings.note(WARNING, "categories that prompts write alike", f"{other!r} and {name!r}")
        if not usable:
            return {}
        with _quiet_prompts():
            prompts = self.prompts.of_categories(usable)
        tokens = (
            self.max_tokens
            - self.prompts.names_budget
            + sum(name_cost(name, self.tokenizer) for name in written.values())
        )
        return {"tokens of all names": f"{tokens} (limit {self.max_tokens})", "prompts for all names": len(prompts)}

    def facts(self) -> dict[str, Any]:
        """Facts about all that was added."""
        facts: dict[str, Any] = {}
        if self.longest_name[0]:
            facts["longest name"] = f"{self.longest_name[1][:60]!r} ({self.longest_name[0]} tokens)"
        if self.longest_caption:
            facts["tokens of the longest caption"] = f"{self.longest_caption} (limit {self.max_tokens})"
        return facts


@contextmanager
def _quiet_prompts() -> Iterator[None]:
    """Within it, prompts are built without warnings: here their faults are counted."""
    log = logging.getLogger("grounding_dino.text")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
