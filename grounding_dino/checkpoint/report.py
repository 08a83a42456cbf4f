"""What became of a checkpoint's tensors and of a model's parameters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from grounding_dino.tables import format_table

_LISTED = 8
_FIRST_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors and of a model's parameters, by name."""

    path: str
    origin: str
    taken: tuple[str, ...]
    new: tuple[str, ...] = ()  # of the model, without a counterpart: keep their initial values
    dropped: tuple[str, ...] = ()  # of the checkpoint, without a counterpart
    misshapen: tuple[str, ...] = ()  # "name (shape in the checkpoint) instead of (shape in the model)"
    ignored: tuple[str, ...] = ()  # because a pattern says so
    selected: tuple[str, ...] = ()  # of those taken: the rows of COCO's 80 categories out of DINO's 91

    def __str__(self) -> str:
        counts = f"{len(self.taken)} tensors taken from {self.path} ({self.origin})"
        if self.selected:
            counts += f", of {listed(self.selected)} the rows of COCO's 80 category ids"
        groups = {"new": self.new, "dropped": self.dropped, "of another shape": self.misshapen, "ignored": self.ignored}
        return counts + "".join(f"; {len(names)} {word}: {listed(names)}" for word, names in groups.items() if names)

    def tables(self) -> str:
        """Numbers of tensors by part of the model, and the names of those that were not taken."""
        groups = {"taken": self.taken, "new": self.new, "dropped": self.dropped, "of another shape": self.misshapen}
        if self.ignored:
            groups["ignored"] = self.ignored
        counts = {word: Counter(map(part_of, names)) for word, names in groups.items()}
        parts = sorted({part for found in counts.values() for part in found})
        rows = [[part, *(str(found[part]) for found in counts.values())] for part in parts]
        rows.append(["all", *(str(len(names)) for names in groups.values())])
        lines = [format_table(["part", *groups], rows)]
        for word, names in groups.items():
            if names and word != "taken":
                lines.append(f"{word}:")
                lines += [f"  {name}" for name in abbreviated(names)]
        if self.selected:
            lines.append(f"rows of COCO's 80 category ids: {', '.join(self.selected)}")
        return "\n".join(lines)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: two steps deep, where these are no numbers."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    deep = first != "backbone" and "." in rest and not second.isdigit()
    return f"{first}.{second}" if deep else first


def abbreviated(names: Sequence[str]) -> list[str]:
    """Names that differ only in their first number as one, such as `layers.{6..8}.norm_ffn.bias`."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = _FIRST_NUMBER.search(name)
        key = (name[: match.start(1)], name[match.end(1) :]) if match else (name, "")
        numbers.setdefault(key, []).extend([int(match.group(1))] if match else [])
    return [start + _range(found) + end for (start, end), found in numbers.items()]


def _range(numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    in_a_row = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{{{numbers[0]}..{numbers[-1]}}}" if in_a_row else f"{{{','.join(map(str, numbers))}}}"


def listed(names: Sequence[str], most: int = _LISTED) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
