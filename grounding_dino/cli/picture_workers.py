"""Processes that read, resize, draw and write pictures while the model runs."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from grounding_dino.cli.picture_work import Answer, Job, PictureWork
from grounding_dino.worker_processes import how_it_ended, without_interrupts

import cv2
import torch
from torch import Tensor

NICENESS = 10  # on the CPU the model's threads come first
_LARGEST_SLOT = 64 << 20  # bytes; larger inputs go through the pipe
_SECONDS_TO_END = 5.0


def can_fork() -> bool:
    """Whether processes start as copies of this one, without importing everything anew."""
    return sys.platform.startswith("linux")


class WorkerProcesses:
    """Does the work of a :class:`PictureWork` in forked processes.

    A picture is read and drawn by the same process, so that it never travels; the model's input comes in memory that
    all processes share, of as many slots as pictures are under way, and results go through a pipe. A thread of this
    process talks to each worker, one request after another, so nobody waits for a full pipe and the end of a worker is
    seen at once.
    """

    def __init__(self, work: PictureWork, count: int, slots: int, pinned: bool = False) -> None:
        """
        Args:
            count: of processes.
            slots: pictures of all workers that may be under way at once.
            pinned: inputs lie in pinned memory, which a GPU reads while this process goes on.
        """
        self.slots = slots
        work.kept_bytes //= count
        self._answers: queue.SimpleQueue[Answer | ChildProcessError] = queue.SimpleQueue()
        each = -(-slots // count)
        self._workers: list[_Worker] = []
        with without_interrupts():  # until the worker ignores them
            for _ in range(count):
                self._workers.append(_Worker(work, each, self._answers, self._workers))
        self._places: dict[int, tuple[_Worker, int]] = {}
        for worker in self._workers:  # threads start behind the last fork
            if pinned:
                worker.arena.pin()
            worker.thread.start()

    def submit(self, call: str, job: Job, *arguments: Any) -> None:
        """Ask for the work; reading comes first, and anything else gives the picture's slot free."""
        if call == "read":
            worker = max(self._workers, key=lambda worker: len(worker.free))
            slot = worker.free.pop()
            self._places[job.number] = worker, slot
        else:
            worker, slot = self._places.pop(job.number)
            worker.free.append(slot)
        worker.requests.put(_Request(call, job, slot, arguments))

    def has_answer(self) -> bool:
        """Whether :meth:`answer` would not wait."""
        return not self._answers.empty()

    def answer(self) -> Answer:
        """The next answer of any worker; waits for it.

        Raises:
            ChildProcessError: a worker has ended, as by the system where memory is short.
        """
        answer = self._answers.get()
        if isinstance(answer, ChildProcessError):
            raise answer
        return answer

    def close(self) -> None:
        """End the workers; what is being written is finished, what waits is not begun."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()
            worker.arena.unpin()


class _Request(NamedTuple):
    call: str
    job: Job
    slot: int
    arguments: tuple[Any, ...]


class _Arena:
    """Slots in memory that is shared with the processes forked from this one."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slot_bytes = min(slot_bytes, _LARGEST_SLOT)
        self._memory = mmap.mmap(-1, max(1, slots * self.slot_bytes))  # anonymous: not of the small /dev/shm
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._pinned = False

    def pin(self) -> None:
        """Let the GPU read it directly; where that is refused, copies go through the driver's own memory."""
        runtime = torch.cuda.cudart()
        answer = runtime.cudaHostRegister(self._bytes.data_ptr(), self._bytes.numel(), 0)
        self._pinned = answer == runtime.cudaError.success

    def unpin(self) -> None:
        """Before the memory goes: it would stay locked, and the same addresses could not be pinned again."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
            self._pinned = False

    def slot(self, number: int, shape: tuple[int, ...]) -> Tensor:
        """The start of a slot as a tensor of uint8."""
        start = number * self.slot_bytes
        return self._bytes[start : start + torch.Size(shape).numel()].view(shape)


class _Worker:
    """A process and the thread that talks to it."""

    def __init__(
        self, work: PictureWork, slots: int, answers: queue.SimpleQueue[Any], earlier: Sequence[_Worker]
    ) -> None:
        """`earlier`: those forked before, whose ends of pipes this one inherits."""
        self.arena = _Arena(slots, work.prepare.max_bytes)
        self.free = list(range(slots))
        self.requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._answers = answers
        self._stopping = False
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        inherited = [self._connection, *(worker._connection for worker in earlier)]
        self._process = context.Process(target=_serve, args=(work, theirs, self.arena, inherited), daemon=True)
        self._process.start()
        theirs.close()  # the worker's is the only one, so that its end closes the pipe
        self.thread = threading.Thread(target=self._talk, daemon=True)

    def _talk(self) -> None:
        while (request := self.requests.get()) is not None and not self._stopping:
            try:
                self._connection.send_bytes(_Pickler.dumps(request))
                answer: Answer = ForkingPickler.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                self._process.join()
                self._answers.put(ChildProcessError(_end_of_worker(self._process.exitcode, request.job)))
                return
            except Exception as error:  # what cannot be sent is this picture's failure: somebody waits for an answer
                answer = Answer(request.call, request.job, None, str(error) or type(error).__name__)
            if request.call == "read" and not answer.error and isinstance(answer.value["image"], tuple):
                answer.value["image"] = self.arena.slot(request.slot, answer.value["image"])
            self._answers.put(answer)
        self._connection.close()  # which tells the worker to end

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        self.requests.put(None)

    def join(self) -> None:
        """Wait for the end, some seconds at most."""
        self.thread.join(_SECONDS_TO_END)
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Pickler(ForkingPickler):
    """Tensors go as their bytes: they are small, and torch's way over shared files costs more than a drawing."""

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, Tensor) and item.dtype != torch.bfloat16:
            return torch.from_numpy, (item.numpy(),)
        return NotImplemented


def _serve(work: PictureWork, connection: Connection, arena: _Arena, inherited: Sequence[Connection]) -> None:
    """The life of a worker process; `inherited` are copies of the main process's ends of pipes."""
    for copy in inherited:  # or no pipe would end with the main process, and the worker with it
        copy.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.nice(NICENESS)
    torch.set_num_threads(1)  # the pool of threads did not come along
    cv2.setNumThreads(0)
    with contextlib.suppress(EOFError, OSError):  # the main process has ended, or wants no more
        while True:
            request: _Request = ForkingPickler.loads(connection.recv_bytes())
            answer = work.answer(request.call, request.job, *request.arguments)
            if request.call == "read" and not answer.error:
                image = answer.value["image"]
                if image.nbytes <= arena.slot_bytes:
                    arena.slot(request.slot, image.shape).copy_(image)
                    answer.value["image"] = tuple(image.shape)
            connection.send_bytes(_Pickler.dumps(answer))


def _end_of_worker(exitcode: int | None, job: Job) -> str:
    return (
        f"a worker process that reads and draws pictures was ended {how_it_ended(exitcode)} at {job.path!r}; where the "
        "system ends it for want of memory, take a smaller --batch-size, or --workers 0"
    )
