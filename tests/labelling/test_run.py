"""Dealing out tasks to workers that live and die as a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.labelling.journal import Journal
from grounding_dino.labelling.labeller import Task
from grounding_dino.labelling.run import Done, Event, LabellingRun, Lost, Ready, Refused, tasks_of

import pytest

READY = Ready(None)


class Scripted:
    """A crew whose workers answer at once; `dies(task)` says whether a worker dies at it."""

    def __init__(self, size: int, dies: Callable[[Task], bool] = lambda task: False, first: Event = READY) -> None:
        self.size, self.dies, self.first = size, dies, first
        self.hired = 0
        self.tasks: list[list[int]] = []
        self.alone: list[bool] = []
        self.events: list[tuple[Any, Event]] = []

    def hire(self, place: int) -> Any:
        self.hired += 1
        worker = ScriptedWorker(self)
        self.events.append((worker, self.first))
        return worker

    def wait(self) -> list[tuple[Any, Event]]:
        return [self.events.pop(0)]

    def close(self) -> None:
        self.events.clear()


class ScriptedWorker:
    def __init__(self, crew: Scripted) -> None:
        self.crew = crew

    def label(self, task: Task, ahead: Task | None) -> None:
        numbers = [entry["number"] for entry in task.entries]
        self.crew.tasks.append(numbers)
        self.crew.alone.append(ahead is None)
        died = self.crew.dies(task)
        event = Lost("by the signal 9") if died else Done([{"number": n} for n in numbers if n in task.wanted])
        self.crew.events.append((self, event))

    def close(self) -> None:
        pass


def entries(count: int) -> list[dict[str, Any]]:
    return [{"number": number, "file_name": f"{number}.png"} for number in range(count)]


def run(folder: Path, crew: Scripted, count: int = 20, batch_size: int = 1) -> Journal:
    journal = Journal(folder, count)
    LabellingRun(crew, tasks_of(entries(count), journal, batch_size), journal.add, lambda classes: None)()
    return journal


@pytest.mark.parametrize("size", [1, 3, 30])
def test_every_picture_is_done_once(tmp_path: Path, size: int) -> None:
    crew = Scripted(size)
    journal = run(tmp_path, crew)
    assert sorted(number for task in crew.tasks for number in task) == list(range(20))
    assert journal.is_complete and not journal.failed


def test_a_killed_worker_is_replaced_and_its_task_done_again(tmp_path: Path) -> None:
    deaths = [1]
    crew = Scripted(2, lambda task: bool(deaths and deaths.pop()))
    journal = run(tmp_path, crew)
    assert journal.labelled == 20 and crew.hired == 3


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_the_picture_that_kills_fails_and_no_other(tmp_path: Path, size: int, batch_size: int) -> None:
    crew = Scripted(size, lambda task: any(entry["number"] == 7 for entry in task.entries))
    journal = run(tmp_path, crew, batch_size=batch_size)
    assert (journal.labelled, journal.failed) == (19, 1)
    (failed,) = [record for record in journal if "error" in record]
    assert failed["number"] == 7 and "ended by the signal 9 at it, more than once" in failed["error"]
    assert crew.hired == size + 3
    suspects = [alone for task, alone in zip(crew.tasks, crew.alone) if 7 in task][1:]
    assert all(suspects)  # nothing else was being read meanwhile


def test_a_single_picture_fails_at_its_second_death(tmp_path: Path) -> None:
    crew = Scripted(1, lambda task: True)
    assert run(tmp_path, crew, count=1).failed == 1
    assert len(crew.tasks) == 2


def test_a_worker_that_cannot_begin_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such weights"):
        run(tmp_path, Scripted(2, first=Refused("no such weights")))


def test_workers_that_die_at_once_are_not_hired_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match="fewer --workers"):
        run(tmp_path, Scripted(2, first=Lost("by the signal 9")))


def test_a_batch_is_formed_anew_of_the_same_pictures(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 20)
    journal.add([{"number": number} for number in (0, 1, 2, 3, 4, 5, 6, 7, 9)])
    (first, *_) = tasks_of(entries(20), journal, batch_size=2)
    assert [entry["number"] for entry in first.entries] == list(range(8, 16))
    assert first.wanted == {8, *range(10, 16)}


def test_single_pictures_are_not_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 8)
    journal.add([{"number": number} for number in (0, 1, 5)])
    tasks = list(tasks_of(entries(8), journal, batch_size=1))
    assert [[entry["number"] for entry in task.entries] for task in tasks] == [[2, 3], [4, 6, 7]]


def test_errors_of_the_list_are_no_tasks(tmp_path: Path) -> None:
    listed = [{**entry, "error": "x"} if entry["number"] == 3 else entry for entry in entries(4)]
    (task,) = tasks_of(listed, Journal(tmp_path, 4), batch_size=1)
    assert [entry["number"] for entry in task.entries] == [0, 1, 2]
