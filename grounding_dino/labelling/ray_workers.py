"""Workers on a cluster: Ray's actors. Pictures are read where they are labelled, so all nodes need to see the files."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from grounding_dino.labelling.run import Done, Event, Lost, Ready, Refused
from grounding_dino.labelling.settings import LabelSettings

if TYPE_CHECKING:
    from grounding_dino.labelling.labeller import Task

logger = logging.getLogger(__name__)

_PATIENCE = 120.0  # seconds without a word from any worker

LOCAL = "local"  # the address of a Ray of our own on this machine


def import_ray() -> Any:
    """
    Raises:
        ValueError: Ray is missing.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless somebody asked for it
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs the package ray, which is not installed: pip install ray") from error
    return ray


class RayCrew:
    """`size` actors, each with the model, a GPU of its own or some of a node's cores.

    Actors are not restarted by Ray, and no task is tried again by it: who died at which picture is known here, and what
    follows from it is the same as on one machine.
    """

    def __init__(self, settings: LabelSettings, size: int, address: str | None = None, gpu: bool = False) -> None:
        """
        Args:
            address: of a cluster; None is the one that RAY_ADDRESS names, else a Ray of this machine's own.
            gpu: each actor gets a GPU.

        Raises:
            ValueError: Ray is missing.
            ConnectionError: there is no cluster at the address.
        """
        self.size = size
        self._ray = import_ray()
        self._settings = settings
        self._workers: list[RayWorker] = []
        self._has_begun = False
        address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        own = {"num_cpus": size * settings.threads, "include_dashboard": False} if address == LOCAL else {}
        self._ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **own)
        self._actor = self._ray.remote(
            num_cpus=settings.threads, num_gpus=int(gpu), max_restarts=0, max_task_retries=0, max_concurrency=1
        )(_Actor)

    def hire(self, place: int) -> RayWorker:
        """See :class:`Crew`."""
        worker = RayWorker(self._ray, self._actor.remote(self._settings))
        self._workers.append(worker)
        return worker

    def wait(self) -> list[tuple[RayWorker, Event]]:
        """See :class:`Crew`."""
        self._workers = [worker for worker in self._workers if not worker.is_closed]
        by_answer = {worker.answer: worker for worker in self._workers if worker.answer is not None}
        ready, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=_PATIENCE)
        if not ready and not self._has_begun:
            logger.warning(
                "no worker has begun yet: the cluster has no room for %d with %d cores each, or is still making it",
                *(self.size, self._settings.threads),
            )
        self._has_begun |= bool(ready)
        return [(by_answer[answer], by_answer[answer].event()) for answer in ready]

    def close(self) -> None:
        """See :class:`Crew`."""
        for worker in self._workers:
            worker.close()
        self._ray.shutdown()


class RayWorker:
    """An actor, and the answer that it owes."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.is_closed = False
        self.answer: Any = actor.begin.remote()

    def label(self, task: Task, ahead: Task | None) -> None:
        """See :class:`Worker`."""
        self.answer = self._actor.label.remote(task, ahead)

    def event(self) -> Event:
        """Its answer, which is there."""
        answer, self.answer = self.answer, None
        try:
            event: Event = self._ray.get(answer)
            return event
        except self._ray.exceptions.RayTaskError as error:  # of our own code
            return Lost(f"by an error: {error.cause or error}")
        except self._ray.exceptions.RayError as error:  # the process or its node is gone, or what it gave
            return Lost(f"as Ray says: {' '.join(str(error).split())[:300]}")

    def close(self) -> None:
        """See :class:`Worker`."""
        if not self.is_closed:
            self.is_closed = True
            self._ray.kill(self._actor)


class _Actor:
    """A labeller in a process of Ray's."""

    def __init__(self, settings: LabelSettings) -> None:
        self._settings = settings

    def begin(self) -> Event:
        """Load the model."""
        import torch

        torch.set_num_threads(self._settings.threads)
        from grounding_dino.labelling.labeller import Labeller

        try:
            self._labeller = Labeller(self._settings)
        except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
            return Refused(str(error.args[0] if isinstance(error, KeyError) and error.args else error))
        return Ready(self._labeller.classes)

    def label(self, task: Task, ahead: Task | None) -> Event:
        """Do a task."""
        return Done(self._labeller(task, ahead))
