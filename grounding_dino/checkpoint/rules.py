"""Renaming rules between our state-dict names and another origin's, usable in both directions.

A template is a name with placeholders: ``{i}``, ``{j}`` stand for numbers, ``{p}`` for one word such as ``weight``,
``{rest}`` for anything. A rule pairs our template with one or several of the other origin's; its `join` says how
several tensors make one of ours, or how a tensor is laid out differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from grounding_dino.checkpoint.files import CheckpointError

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "p": r"[A-Za-z_]+", "rest": r".+"}


@dataclass(frozen=True)
class Join:
    """How tensors of one rule correspond: `to_ours` takes the other origin's, `to_theirs` gives that many back."""

    to_ours: Callable[[Sequence[Tensor]], Tensor]
    to_theirs: Callable[[Tensor, int], Sequence[Tensor]]
    partial: bool = False  # any one of the other origin's tensors suffices


def _equal_copies(tensors: Sequence[Tensor]) -> Tensor:
    if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
        raise CheckpointError("tensors that should be copies of one another differ")
    return tensors[0]


def each(to_ours: Callable[[Tensor], Tensor], to_theirs: Callable[[Tensor], Tensor]) -> Join:
    """A join of one tensor with one tensor, laid out differently."""
    return Join(lambda tensors: to_ours(tensors[0]), lambda tensor, _: [to_theirs(tensor)])


SAME = each(lambda tensor: tensor, lambda tensor: tensor)
ROWS = Join(  # ours is the others' rows, one after another (query, key, value)
    lambda tensors: torch.cat(list(tensors)), lambda tensor, count: [part.clone() for part in tensor.chunk(count)]
)
COPIES = Join(_equal_copies, lambda tensor, count: [tensor] * count, partial=True)  # one tensor under several names
FIRST_COPY = Join(_equal_copies, lambda tensor, count: [tensor], partial=True)  # the same, but written under the first
# One number: ours has shape (1,) for biases, () for scales, as the modules have it.
VECTOR_TO_SCALAR = Join(  # under the first of its names
    lambda tensors: _equal_copies(tensors).reshape(1), lambda tensor, count: [tensor.reshape(())], partial=True
)
SCALAR_TO_VECTOR = each(lambda tensor: tensor.reshape(()), lambda tensor: tensor.reshape(1))


def _channel_major_to_chunks(tensor: Tensor) -> Tensor:
    # (..., C, [(0,0), (0,1), (1,0), (1,1)]) -> (..., [(0,0), (1,0), (0,1), (1,1)], C), places as (row, column)
    return tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2).contiguous()


def _chunks_to_channel_major(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2).contiguous()


# Swin's patch merging in mmdet's order of the 2 x 2 neighbours; ours is the authors'.
MMDET_MERGING = each(_channel_major_to_chunks, _chunks_to_channel_major)


@dataclass(frozen=True)
class Rule:
    """One correspondence of names. `carried`: no module of ours holds it, it is kept. `read_only`: an older name."""

    ours: str
    theirs: str | tuple[str, ...]
    join: Join = SAME
    carried: bool = False
    read_only: bool = False

    @property
    def their_templates(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Translation:
    """A translated state dict; `carried` has no module, `unknown` are source names that no rule knows."""

    state: StateDict
    carried: StateDict
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """All rules between ours and one origin of one model.

    `collapse` and `expand` are prefixes of heads that may be shared by all decoder layers, which ours then stores
    once (index 0): `expand` where the other origin always writes one a layer, `collapse` where equal ones mean a
    shared one.
    `absent` are patterns of our names for which the origin has no place.
    """

    rules: tuple[Rule, ...]
    collapse: tuple[str, ...] = ()
    expand: tuple[str, ...] = ()
    absent: tuple[str, ...] = (r"denoising\.",)
    num_layers: int = field(default=0)

    @cached_property
    def _their_patterns(self) -> list[tuple[re.Pattern[str], int, int]]:
        return [
            (compile_template(template), number, slot)
            for number, rule in enumerate(self.rules)
            for slot, template in enumerate(rule.their_templates)
        ]

    @cached_property
    def _our_patterns(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(compile_template(rule.ours), rule) for rule in self.rules if not rule.read_only]

    def to_ours(self, theirs: Mapping[str, Tensor]) -> Translation:
        """Translate the origin's tensors to our names."""
        groups: dict[tuple[int, tuple[tuple[str, str], ...]], dict[int, str]] = {}
        unknown = []
        for name in theirs:
            for pattern, number, slot in self._their_patterns:
                if match := pattern.fullmatch(name):
                    groups.setdefault((number, tuple(sorted(match.groupdict().items()))), {})[slot] = name
                    break
            else:
                unknown.append(name)
        state: StateDict = {}
        carried: StateDict = {}
        for (number, values), names in groups.items():
            rule = self.rules[number]
            our_name = rule.ours.format(**dict(values))
            templates = rule.their_templates
            if len(names) < len(templates) and not rule.join.partial:
                lost = [t.format(**dict(values)) for slot, t in enumerate(templates) if slot not in names]
                raise CheckpointError(f"the checkpoint holds {sorted(names.values())} but lacks {lost}")
            (carried if rule.carried else state)[our_name] = _joined(
                rule, {n: theirs[n] for _, n in sorted(names.items())}
            )
        for prefix in self.collapse:
            state = collapse_heads(state, prefix)
        return Translation(state, carried, tuple(unknown))

    def to_theirs(self, ours: Mapping[str, Tensor]) -> Translation:
        """Translate our tensors, carried ones among them, to the origin's names."""
        for prefix in self.expand:
            ours = expand_heads(ours, prefix, self.num_layers)
        state: StateDict = {}
        unknown = []
        for name, tensor in ours.items():
            for pattern, rule in self._our_patterns:
                if match := pattern.fullmatch(name):
                    templates = rule.their_templates
                    parts = rule.join.to_theirs(tensor, len(templates))
                    state.update({t.format(**match.groupdict()): part for t, part in zip(templates, parts)})
                    break
            else:
                unknown.append(name)
        return Translation(state, {}, tuple(unknown))


def _joined(rule: Rule, tensors: StateDict) -> Tensor:
    try:
        return rule.join.to_ours(list(tensors.values()))
    except (CheckpointError, RuntimeError, IndexError) as error:
        shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
        raise CheckpointError(f"cannot use {', '.join(shapes)}: {error}") from error


def compile_template(template: str) -> re.Pattern[str]:
    """A pattern that matches names of the template's form, one named group a placeholder."""
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(f"(?P<{p}>{_PLACEHOLDERS[p]})" if n % 2 else re.escape(p) for n, p in enumerate(parts))
    return re.compile(pattern)


def _heads(state: Mapping[str, Tensor], prefix: str) -> dict[int, StateDict]:
    heads: dict[int, StateDict] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            number, rest = name[len(prefix) :].split(".", 1)
            heads.setdefault(int(number), {})[rest] = tensor
    return heads


def collapse_heads(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """Keep only head 0 of `prefix` if all its heads are equal; else the state as it is."""
    heads = _heads(state, prefix)
    first = heads.get(0)
    if first is None or len(heads) == 1:
        return dict(state)
    for head in heads.values():
        if head.keys() != first.keys() or any(not torch.equal(head[rest], first[rest]) for rest in first):
            return dict(state)
    return {name: tensor for name, tensor in state.items() if not re.match(re.escape(prefix) + r"(?!0\.)", name)}


def expand_heads(state: Mapping[str, Tensor], prefix: str, count: int) -> StateDict:
    """Repeat the only head of `prefix` for every layer; a state with several heads, or none, stays as it is."""
    heads = _heads(state, prefix)
    if set(heads) != {0}:
        return dict(state)
    copies = {f"{prefix}{i}.{rest}": tensor for i in range(count) for rest, tensor in heads[0].items()}
    return {**state, **copies}
