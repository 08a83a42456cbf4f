"""Deals out tasks to workers, whatever becomes of these, and hands on the records that they give."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from grounding_dino.labelling.journal import Journal, Record
from grounding_dino.labelling.labeller import Task
from grounding_dino.labelling.plan import Entry

logger = logging.getLogger(__name__)

TASK_BATCHES = 4  # batches' worth of pictures that a task has: enough to find equals among
FATAL_DEATHS = 2  # of workers at one picture
_DEATHS_BEFORE_READY = 3  # in a row, of workers that never got as far as to a task


class Ready(NamedTuple):
    """A worker can take tasks; its model's classes, None of a model with text."""

    classes: tuple[str, ...] | None


class Done(NamedTuple):
    """A task's records."""

    records: list[Record]


class Lost(NamedTuple):
    """A worker has ended; `how` is what follows "a worker process was ended" in a sentence."""

    how: str


class Refused(NamedTuple):
    """A worker cannot begin, for a reason that another one would have too."""

    reason: str


Event = Ready | Done | Lost | Refused


class Worker(Protocol):
    """One of a crew: a process with a model."""

    def label(self, task: Task, ahead: Task | None) -> None:
        """Begin a task; `ahead` is likely the next one."""

    def close(self) -> None:
        """End, at once."""


class Crew(Protocol):
    """Where workers come from."""

    size: int

    def hire(self, place: int) -> Worker:
        """A new worker in one of `size` places; it answers with Ready or Refused first."""

    def wait(self) -> Sequence[tuple[Worker, Event]]:
        """What workers answer; waits for one, or for some time."""

    def close(self) -> None:
        """End all workers."""


def tasks_of(entries: Iterable[Entry], journal: Journal, batch_size: int, tiled: bool = False) -> Iterator[Task]:
    """The tasks of a plan that have a picture without a record; entries that are errors are no part of them.

    A batch of one, and a picture in tiles, are the same without their neighbours: there only the missing ones are in.
    """
    alone = batch_size == 1 or tiled
    size = TASK_BATCHES * (1 if tiled else batch_size)
    group: list[Entry] = []

    def task() -> Task | None:
        wanted = frozenset(entry["number"] for entry in group if not journal.has(entry["number"]))
        kept = tuple(entry for entry in group if not alone or entry["number"] in wanted)
        return Task(kept, wanted) if wanted else None

    for entry in entries:
        if "error" not in entry:
            group.append(entry)
        if entry["number"] % size == size - 1:  # by the number: what stands in a task never depends on the journal
            found, group = task(), []
            if found:
                yield found
    found = task()
    if found:
        yield found


@dataclass
class _Assigned:
    """A task on its way, and how many workers have died at it."""

    task: Task
    deaths: int = 0

    @property
    def is_single(self) -> bool:
        return len(self.task.entries) == 1


@dataclass
class _Place:
    """One of the crew's places."""

    number: int
    worker: Worker
    is_ready: bool = False
    current: _Assigned | None = None
    ahead: _Assigned | None = None


@dataclass
class LabellingRun:
    """Runs tasks to their end.

    A worker that dies is replaced, and its task is done again. If that kills a second worker, its pictures are done one
    by one, and the one that kills again has failed. So a picture that brings its worker down costs three workers, and
    no other picture; a worker that somebody killed costs a task's time.

    Attributes:
        add: takes records as they come, in any order.
        started: is told the classes of a model of fixed classes, once.
    """

    crew: Crew
    tasks: Iterator[Task]
    add: Callable[[Sequence[Record]], None]
    started: Callable[[tuple[str, ...] | None], None]
    _suspects: deque[_Assigned] = field(default_factory=deque)
    _given_back: deque[_Assigned] = field(default_factory=deque)
    _places: list[_Place] = field(default_factory=list)
    _deaths_before_ready: int = 0
    _has_started: bool = False

    def __call__(self) -> None:
        """
        Raises:
            ValueError: a worker cannot begin.
            ChildProcessError: workers die before they begin.
        """
        try:
            self._places = [_Place(number, self.crew.hire(number)) for number in range(self.crew.size)]
            while True:
                for place in self._places:
                    self._assign(place)
                if not any(place.current for place in self._places) and self._nothing_left():
                    return
                for worker, event in self.crew.wait():
                    self._take(worker, event)
        finally:
            self.crew.close()

    def _nothing_left(self) -> bool:
        """Whether all tasks are given out; looks at the next one."""
        if not (self._suspects or self._given_back):
            task = next(self.tasks, None)
            if task is not None:
                self._given_back.append(_Assigned(task))
        return not (self._suspects or self._given_back)

    def _assign(self, place: _Place) -> None:
        if not place.is_ready or place.current:
            return
        if place.ahead is None and self._suspects:
            place.current = self._suspects.popleft()  # alone, so that it is clear who kills
        else:
            place.current = place.ahead or self._next()
            place.ahead = None
            if place.current:
                place.ahead = self._next()
        if place.current:
            place.worker.label(place.current.task, place.ahead.task if place.ahead else None)

    def _next(self) -> _Assigned | None:
        if self._given_back:
            return self._given_back.popleft()
        task = next(self.tasks, None)
        return None if task is None else _Assigned(task)

    def _take(self, worker: Worker, event: Event) -> None:
        place = next((place for place in self._places if place.worker is worker), None)
        if place is None:  # replaced already
            return
        if isinstance(event, Refused):
            raise ValueError(event.reason)
        if isinstance(event, Ready):
            place.is_ready, self._deaths_before_ready = True, 0
            if not self._has_started:
                self._has_started = True
                self.started(event.classes)
        elif isinstance(event, Done):
            place.current = None
            self.add(event.records)
        else:
            self._replace(place, event.how)

    def _replace(self, place: _Place, how: str) -> None:
        place.worker.close()
        if not place.is_ready:
            self._deaths_before_ready += 1
            if self._deaths_before_ready >= _DEATHS_BEFORE_READY:
                raise ChildProcessError(
                    f"a worker process was ended {how} before it could begin, {_DEATHS_BEFORE_READY} times in a row; "
                    "where the system ends it for want of memory, take fewer --workers"
                )
        if place.ahead:
            self._given_back.appendleft(place.ahead)
        if place.current:
            self._suspect(place.current, how)
        logger.warning("a worker process was ended %s; another takes its place", how)
        place.current = place.ahead = None
        place.is_ready = False
        place.worker = self.crew.hire(place.number)

    def _suspect(self, assigned: _Assigned, how: str) -> None:
        """What becomes of a task that a worker has died at."""
        assigned.deaths += 1
        if assigned.deaths < FATAL_DEATHS:
            self._suspects.append(assigned)
        elif assigned.is_single:
            (entry,) = assigned.task.entries
            self.add([{"number": entry["number"], "error": f"a worker process was ended {how} at it, more than once"}])
        else:
            for entry in assigned.task.entries:
                if entry["number"] in assigned.task.wanted:
                    self._suspects.append(_Assigned(Task((entry,), frozenset([entry["number"]])), deaths=1))
