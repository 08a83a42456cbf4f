"""The demo on pictures: the model runs in this process, everything else beside it."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grounding_dino.cli.picture_work import Answer, Finished, InThisProcess, Job, PictureWork
from grounding_dino.cli.picture_workers import WorkerProcesses, can_fork
from grounding_dino.picture_batches import PictureBatches
from grounding_dino.predictor import GroundingPredictor

import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)

FEW_PICTURES = 8  # are done before a worker would pay
MOST_WORKERS = 8


@dataclass
class Report:
    """What became of each picture, in order."""

    records: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, finished: Finished) -> None:
        """Take a picture's record, with its error if it has one."""
        error = {"error": finished.error} if finished.error else {}
        self.records.append({"file_name": path, **finished.record, **error})
        if finished.error:
            self.failures.append((path, finished.error))

    def print_failures(self, total: int) -> None:
        """Name the failures, if there are any, on the standard error."""
        if self.failures:
            print(f"{len(self.failures)} of {total} pictures failed:", file=sys.stderr)
        for path, reason in self.failures:
            print(f"  {path}: {reason}", file=sys.stderr)


def number_of_workers(pictures: int, device: torch.device) -> int:
    """As many processes as keep the model busy, from the cores that it leaves free.

    A model on the CPU leaves those beyond torch's threads, by default none: a worker that takes a core from one thread
    lets the others wait, and a run takes longer with it than without.
    """
    if pictures <= FEW_PICTURES or not can_fork():
        return 0
    cores = len(os.sched_getaffinity(0))
    if device.type == "cpu":
        return max(0, min(MOST_WORKERS, cores - torch.get_num_threads()))
    return max(1, min(MOST_WORKERS, cores - 1))


def batches_for(predictor: GroundingPredictor, batch_size: int) -> PictureBatches:
    """Forms a run's batches, without padding where the model would take it for picture."""
    return PictureBatches(batch_size, padding=not getattr(predictor.model, "pad_before_backbone", False))


class PictureRun:
    """Detects in pictures batch by batch, and reports them in their order.

    While the model runs, workers read and resize the next pictures and draw the last ones. Only so many are under way
    at a time, whatever their number. Batches, and so results, do not depend on the workers.

    Raises, when called:
        ChildProcessError: a worker has ended.
    """

    def __init__(
        self,
        predictor: GroundingPredictor,
        planned: Sequence[tuple[str, Path | None]],
        options: dict[str, Any],
        batch_size: int = 1,
        workers: int | None = None,
        masks: bool = False,
    ) -> None:
        """
        Args:
            planned: pictures, and the files to draw them into, if any.
            options: of the predictor: what to look for, and thresholds.
            workers: processes; 0 does all in this one, None decides by the number of pictures and the device.
            masks: whether records hold masks.
        """
        self.predictor, self.options = predictor, options
        self.jobs = [Job(number, path, target) for number, (path, target) in enumerate(planned)]
        self.batches = batches_for(predictor, batch_size)
        self.report = Report()
        self._team = self._assemble(batch_size, PictureWork(predictor.prepare, masks), workers)
        self._asked = self._admitted = self._reported = 0  # how many pictures, in order
        self._read: dict[int, Answer] = {}
        self._inputs: dict[int, dict[str, Any]] = {}
        self._ready: deque[list[int]] = deque()
        self._finished: dict[int, Finished] = {}
        self._under_way: set[int] = set()

    def __call__(self) -> Report:
        """Detect in all pictures; interrupted, `report` has those that were finished."""
        total = len(self.jobs)
        try:
            with tqdm(total=total, unit="picture", disable=total < 2) as bar:
                while self._reported < total:
                    self._ask()
                    while self._team.has_answer():
                        self._take(self._team.answer())
                        self._ask()
                    if self._ready:
                        self._run_batch(self._ready.popleft())
                    elif self._under_way:
                        self._take(self._team.answer())
                    bar.update(self._print_finished())
        finally:  # also when stopped by Ctrl-C
            self._team.close()
            for number in sorted(self._finished):  # behind one that was not
                self.report.add(self.jobs[number].path, self._finished[number])
        return self.report

    def _assemble(self, batch_size: int, work: PictureWork, workers: int | None) -> InThisProcess | WorkerProcesses:
        """Those who do the work; the slots let pictures wait for a batch, one batch be read and one be drawn."""
        device = getattr(self.predictor.model, "device", torch.device("cpu"))
        count = number_of_workers(len(self.jobs), device) if workers is None else workers
        if not count or not can_fork():
            return InThisProcess(work, self.batches.lookahead)
        slots = self.batches.lookahead + 2 * batch_size + 2 * count
        return WorkerProcesses(work, count, slots, pinned=device.type == "cuda")

    def _ask(self) -> None:
        while self._asked < len(self.jobs) and len(self._under_way) < self._team.slots:
            job = self.jobs[self._asked]
            self._under_way.add(job.number)
            self._team.submit("read", job)
            self._asked += 1

    def _take(self, answer: Answer) -> None:
        """Keep what a worker gave; pictures enter batches in their order, whoever was faster."""
        number = answer.job.number
        if answer.call == "read":
            self._read[number] = answer
            while self._admitted in self._read:
                self._admit(self._read.pop(self._admitted))
                self._admitted += 1
            if self._admitted == len(self.jobs):
                self._ready += self.batches.rest()
        elif answer.call == "finish":
            self._end(number, Finished({}, "", answer.error) if answer.error else answer.value)

    def _admit(self, answer: Answer) -> None:
        if answer.error:
            self._fail(answer.job, answer.error)
            return
        self._inputs[answer.job.number] = answer.value
        height, width = answer.value["image"].shape[-2:]
        self._ready += self.batches.add(answer.job.number, (height, width))

    def _run_batch(self, numbers: list[int]) -> None:
        """Detect; where a batch fails, its pictures are tried one by one, and the culprits reported."""
        inputs = [self._inputs[number] for number in numbers]
        try:
            results = self.predictor.detect(inputs, **self.options)
        except Exception as error:  # whatever one picture does to the model, the others are to be done
            logger.debug("%s failed", [self.jobs[number].path for number in numbers], exc_info=True)
            results, reason = None, str(error) or type(error).__name__
        if results is not None:
            for number, found in zip(numbers, results):
                size = self._inputs.pop(number)
                self._team.submit("finish", self.jobs[number], found, (size["height"], size["width"]))
        elif len(numbers) == 1:
            self._fail(self.jobs[numbers[0]], reason)
        else:  # behind the handler: until its end the error holds what the batch had in memory
            for number in numbers:
                self._run_batch([number])

    def _fail(self, job: Job, reason: str) -> None:
        self._inputs.pop(job.number, None)
        self._team.submit("forget", job)
        self._end(job.number, Finished({}, "", reason))

    def _end(self, number: int, finished: Finished) -> None:
        self._under_way.remove(number)
        self._finished[number] = finished

    def _print_finished(self) -> int:
        """Report the pictures that are finished and whose turn it is; how many."""
        before = self._reported
        while (finished := self._finished.pop(self._reported, None)) is not None:
            self.report.add(self.jobs[self._reported].path, finished)
            self._reported += 1
            if finished.text:
                tqdm.write(finished.text, file=sys.stdout)  # above the progress bar
        return self._reported - before
