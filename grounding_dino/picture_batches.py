"""Which pictures of a run go through the model together."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

MOST_PADDING = 1.1  # a batch's area over that of its pictures


@dataclasses.dataclass
class PictureBatches:
    """Forms batches of pictures of equal size, in an order that is a function of their sizes alone.

    Pictures wait for their equals while fewer than `lookahead` wait; then the one that has waited longest goes, with
    its equals and, where `padding` is allowed, with those whose aspect ratio is close.
    """

    batch_size: int
    padding: bool = True

    def __post_init__(self) -> None:
        self.lookahead = 1 if self.batch_size == 1 else min(4 * self.batch_size, self.batch_size + 64)
        self._waiting: dict[int, tuple[int, int]] = {}  # number -> (h, w), in order of numbers

    def add(self, number: int, size: tuple[int, int]) -> list[list[int]]:
        """Take the next picture, of `size` (h, w); the batches that are complete with it."""
        self._waiting[number] = size
        equal = [other for other, its in self._waiting.items() if its == size]
        complete = [self._leave(equal)] if len(equal) == self.batch_size else []
        if self._waiting:
            oldest = next(iter(self._waiting))
            if len(self._waiting) >= self.lookahead or number - oldest >= 4 * self.lookahead:
                complete.append(self._with_oldest())
        return complete

    def rest(self) -> list[list[int]]:
        """Batches of all that wait: no more pictures will come."""
        found = []
        while self._waiting:
            found.append(self._with_oldest())
        return found

    def _leave(self, numbers: list[int]) -> list[int]:
        for number in numbers:
            del self._waiting[number]
        return numbers

    def _with_oldest(self) -> list[int]:
        """The oldest, with those that fit best: equals, then the closest aspect ratios."""
        oldest = next(iter(self._waiting.values()))
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, size in self._waiting.items():
            by_size[size].append(number)
        batch: list[int] = []
        for size in sorted(by_size, key=lambda size: (size != oldest, _difference(size, oldest))):
            if size != oldest and not self.padding:
                break
            for number in by_size[size]:
                if len(batch) < self.batch_size and self._padding_of([*batch, number]) <= MOST_PADDING:
                    batch.append(number)
        return self._leave(sorted(batch))

    def _padding_of(self, numbers: list[int]) -> float:
        sizes = [self._waiting[number] for number in numbers]
        padded = max(h for h, _ in sizes) * max(w for _, w in sizes) * len(sizes)
        return padded / sum(h * w for h, w in sizes)


def _difference(size: tuple[int, int], other: tuple[int, int]) -> float:
    """Of two aspect ratios, as a logarithm."""
    return abs(math.log(size[0] * other[1] / (size[1] * other[0])))
