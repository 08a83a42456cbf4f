"""Workers on this machine: processes of their own, so that nothing that befalls one reaches the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from grounding_dino.labelling.run import Done, Event, Lost, Ready, Refused
from grounding_dino.labelling.settings import LabelSettings
from grounding_dino.worker_processes import how_it_ended, without_interrupts

if TYPE_CHECKING:
    from grounding_dino.labelling.labeller import Task

_SECONDS_TO_END = 5.0


class LocalCrew:
    """`size` processes, each with the model, on `devices` in turn."""

    def __init__(self, settings: LabelSettings, size: int, devices: list[str]) -> None:
        self.size = size
        self._settings = settings
        self._devices = devices
        self._workers: list[LocalWorker] = []

    def hire(self, place: int) -> LocalWorker:
        """See :class:`Crew`."""
        worker = LocalWorker(self._settings.on_device(self._devices[place % len(self._devices)]))
        self._workers.append(worker)
        return worker

    def wait(self) -> list[tuple[LocalWorker, Event]]:
        """See :class:`Crew`."""
        self._workers = [worker for worker in self._workers if not worker.connection.closed]
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = [by_connection[connection] for connection in wait(list(by_connection))]  # type: ignore[index]
        return [(worker, worker.event()) for worker in ready]

    def close(self) -> None:
        """See :class:`Crew`."""
        for worker in self._workers:
            worker.close()


class ThisProcess:
    """A crew of one, which is no process of its own: for few pictures, and to look at what goes wrong."""

    size = 1

    def __init__(self, settings: LabelSettings) -> None:
        self._settings = settings
        self._event: Event | None = None

    def hire(self, place: int) -> ThisProcess:
        """See :class:`Crew`."""
        from grounding_dino.labelling.labeller import Labeller

        self._labeller = Labeller(self._settings)
        self._event = Ready(self._labeller.classes)
        return self

    def label(self, task: Task, ahead: Task | None) -> None:
        """See :class:`Worker`."""
        self._event = Done(self._labeller(task, ahead))

    def wait(self) -> list[tuple[ThisProcess, Event]]:
        """See :class:`Crew`."""
        event, self._event = self._event, None
        return [(self, event)] if event else []

    def close(self) -> None:
        """See :class:`Crew`."""


class LocalWorker:
    """A process that was started anew: forked ones would share a GPU's and a thread pool's state with this one."""

    def __init__(self, settings: LabelSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        with without_interrupts():  # Ctrl-C is this process's to handle; the mask is inherited
            self._process = context.Process(target=_serve, args=(settings, theirs), daemon=True)
            self._process.start()
        theirs.close()  # the worker's is the only one, so that its end closes the pipe

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self._process.pid

    def label(self, task: Task, ahead: Task | None) -> None:
        """See :class:`Worker`."""
        with contextlib.suppress(OSError):  # it has ended, as the next event says
            self.connection.send((task, ahead))

    def event(self) -> Event:
        """Its next answer; waits for it."""
        try:
            event: Event = self.connection.recv()
            return event
        except (EOFError, OSError):
            self._process.join()
            return Lost(how_it_ended(self._process.exitcode))

    def close(self) -> None:
        """See :class:`Worker`."""
        if self.connection.closed:
            return
        self.connection.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(settings: LabelSettings, connection: Connection) -> None:
    """The life of a worker process; it ends with the main one, which closes the pipe, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(settings.threads)
    from grounding_dino.labelling.labeller import Labeller

    with contextlib.suppress(EOFError, OSError):
        try:
            labeller = Labeller(settings)
        except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
            connection.send(Refused(str(error.args[0] if isinstance(error, KeyError) and error.args else error)))
            return
        connection.send(Ready(labeller.classes))
        while True:
            task, ahead = connection.recv()
            connection.send(Done(labeller(task, ahead)))
    sys.stdout.flush()
    os._exit(0)  # threads that still read a picture would be waited for
