"""Where the time of a forward pass goes, part by part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.analysis.parts import AFTER, BEFORE, LAST, RULES, part_of

import torch
from torch import nn

# The same parts of `transformers`' Grounding DINO; query selection is what runs between its encoder and its decoder.
TRANSFORMERS_RULES = (
    ("model.backbone", "backbone"),
    ("model.input_proj_vision", "input projection"),
    ("model.text_backbone", "text encoder"),
    ("model.text_projection", "text encoder"),
    ("model.encoder", "encoder"),
    ("model.decoder", "decoder"),
    ("class_embed", "heads and masks"),
    ("bbox_embed", "heads and masks"),
)
TRANSFORMERS_OUTSIDE = {"model.encoder": "query selection", "model.decoder": AFTER}
OUTSIDE = dict.fromkeys(LAST, AFTER)


class PartClock:
    """Within it, passes of a model are timed by part; `seconds` are there when it is left.

    Only the modules at the head of a part are watched, so it costs microseconds. On a GPU the times are those between
    marks in its stream: nothing waits for it, and where it waits for the host, that counts.

    Attributes:
        seconds: of each part; what runs outside of all parts counts as what `outside` says of the last module before.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Sequence[tuple[str, str]] = RULES,
        outside: Mapping[str, str] = OUTSIDE,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._rules, self._outside = rules, outside
        self._heads = _heads_of_parts(model, rules)
        self._on_gpu = next(model.parameters()).device.type == "cuda"
        self._running: list[str] = []
        self._between = BEFORE
        self._marks: list[tuple[str, Any]] = []  # (what ran until then, when)
        self._hooks: list[Any] = []

    def __enter__(self) -> PartClock:
        for name, module in self._heads.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self.enter(name)))
            self._hooks.append(module.register_forward_hook(lambda *_, name=name: self.leave(), always_call=True))
        self._mark()
        return self

    def __exit__(self, *error: object) -> None:
        self._mark()
        for hook in self._hooks:
            hook.remove()
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds: Counter[str] = Counter()
        for (_, start), (part, end) in zip(self._marks, self._marks[1:]):
            seconds[part] += start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
        self.seconds = dict(seconds)

    def enter(self, name: str) -> None:
        """What runs from here on belongs to the module `name`, until `leave`."""
        self._mark()
        self._running.append(name)

    def leave(self) -> None:
        """The module entered last is done."""
        self._mark()
        self._between = self._outside.get(self._running.pop(), self._between)

    def _mark(self) -> None:
        now: Any = time.perf_counter()
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((part_of(self._running, self._rules) or self._between, now))


def _heads_of_parts(model: nn.Module, rules: Sequence[tuple[str, str]]) -> dict[str, nn.Module]:
    """The modules of a part that are in no other module of it, by name; lists of modules are never called."""
    heads: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        part = part_of([name], rules)
        pieces = name.split(".")
        above = {".".join(pieces[:length]) for length in range(1, len(pieces))}
        inside = any(part_of([head], rules) == part for head in above & heads.keys())
        if part is not None and not inside and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            heads[name] = module
    return heads
