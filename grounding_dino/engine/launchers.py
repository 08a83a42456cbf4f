"""Processes that something else has started: torchrun, or submitit under SLURM. They find each other by environment
variables, instead of being started by Detectron2's `launch`."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from detectron2.utils import comm
from torch.distributed import PrefixStore, Store

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=30)  # of the processes' communication, as Detectron2's launch has it


@dataclass(frozen=True)
class Worker:
    """One process of a job: its number among all and on its machine, how many there are of each, and the job's name.

    `run_id` stays the same when the job's processes are restarted, and no other job has it.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    run_id: str


def worker_of_environment(environment: Mapping[str, str] | None = None) -> Worker | None:
    """This process as its starter describes it in the environment; None where nothing has started it as a worker.

    Raises:
        ValueError: a variable that is no number, or the machines have unequal numbers of processes.
    """
    environment = os.environ if environment is None else environment
    if any(name not in environment for name in (*_NAMES, *_MEETING_POINT)):
        return None
    rank, local_rank, world_size, local_world_size = (_number(environment, name) for name in _NAMES)
    # Detectron2 numbers the processes machine by machine, with equally many on each.
    if local_world_size < 1 or world_size % local_world_size or rank % local_world_size != local_rank:
        raise ValueError(
            f"process {rank} of {world_size} is number {local_rank} of {local_world_size} on its machine: start "
            "equally many processes on each machine (torchrun --nproc-per-node)"
        )
    return Worker(rank, local_rank, world_size, local_world_size, _run_id(environment))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise ValueError(
            f"the environment variable {name} is {environment[name]!r}, which is no number; it is set by torchrun, and "
            "should be unset elsewhere"
        ) from error


def _run_id(environment: Mapping[str, str]) -> str:
    """torchrun's own id, where it has one; else the torchrun process itself, which outlives those that it restarts."""
    given = environment.get("TORCHELASTIC_RUN_ID", "none")  # "none" is --rdzv-id's default
    return given if given != "none" else f"{socket.gethostname()}:{environment['MASTER_PORT']}:{os.getppid()}"


def store_of_this_start(store: Store, rank: int, world_size: int, timeout: timedelta = TIMEOUT) -> Store:
    """A part of a job's common `store` that no process of an earlier start of the job has written to.

    torchrun may give the processes that it restarts the store of those before them, in which addresses of dead ones are
    still written: whoever reads such a one fails, or waits for ever. Counts of restarts differ between machines, so the
    processes agree on a name: the first one answers each of the others until that has heard it.

    Raises:
        TimeoutError: a process did not come.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"start/{rank}", own)
        name = store.get(f"start/{own}").decode()
        store.set(f"start/{name}/{rank}", "heard")
        return PrefixStore(name, store)
    end = time.monotonic() + timeout.total_seconds()
    for other in range(1, world_size):
        while not store.check([f"start/{own}/{other}"]):
            if time.monotonic() > end:
                raise TimeoutError(f"process {other} of {world_size} did not come within {timeout}")
            store.set(f"start/{store.get(f'start/{other}').decode()}", own)  # an earlier start's, or this one's
            time.sleep(0.05)
    return PrefixStore(own, store)


def run_worker(function: Callable[..., Any], worker: Worker, device: str, args: tuple[Any, ...] = ()) -> Any:
    """Call `function(*args)` with the job's processes connected, over NCCL for a `device` of CUDA, else over gloo.

    Raises:
        ValueError: this machine has fewer GPUs than processes.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if worker.local_world_size > torch.cuda.device_count():
            raise ValueError(
                f"{worker.local_world_size} processes were started on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; start as many, or put MODEL.DEVICE cpu at the end of the command"
            )
        torch.cuda.set_device(worker.local_rank)
    rank, world_size = worker.rank, worker.world_size
    store, _, _ = next(torch.distributed.rendezvous("env://", rank, world_size, timeout=TIMEOUT))
    store = store_of_this_start(store, rank, world_size)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    comm.create_local_process_group(worker.local_world_size)
    comm.synchronize()
    result = function(*args)
    # Not after an exception: with other processes gone or stuck, this could wait for them forever.
    getattr(comm, "_leave_job", torch.distributed.destroy_process_group)()  # upstream's comm has none
    return result
