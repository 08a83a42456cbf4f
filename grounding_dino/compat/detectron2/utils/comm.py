"""Communication between the processes of a job; every function also works in a single process.

Objects travel over a gloo group, so they need not be tensors, whatever backend the job uses.
"""

from __future__ import annotations

import functools
import time
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
"""Processes on this machine; set once by `create_local_process_group`, read through the functions below."""


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes of the job."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the groups of processes that share a machine; to be called once, by all processes, at their start.

    Ranks are taken to be consecutive on each machine.
    """
    global _LOCAL_PROCESS_GROUP
    if _LOCAL_PROCESS_GROUP is not None:
        raise RuntimeError("create_local_process_group was called before; call it once a process")
    world_size = get_world_size()
    if world_size % num_workers_per_machine != 0:
        raise ValueError(f"{world_size} processes cannot be {num_workers_per_machine} on each machine")
    own_machine = get_rank() // num_workers_per_machine
    for machine in range(world_size // num_workers_per_machine):
        first = machine * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == own_machine:
            _LOCAL_PROCESS_GROUP = cast(dist.ProcessGroup, group)  # its members get a group, never a placeholder


def get_local_process_group() -> dist.ProcessGroup:
    """Group of the processes on this machine. Raises RuntimeError before `create_local_process_group`."""
    if _LOCAL_PROCESS_GROUP is None:
        raise RuntimeError("there is no local process group; start processes with detectron2.engine.launch")
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes of the job on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is the process of rank 0."""
    return get_rank() == 0


def _leave_job() -> None:
    """End the communication: the last thing that a process does with it.

    A group that is still referred to keeps its threads. One of them may give back a tensor while the interpreter ends,
    for which it needs the lock that the interpreter no longer hands out, and the process dies of SIGABRT.
    """
    global _LOCAL_PROCESS_GROUP
    _LOCAL_PROCESS_GROUP = None
    _global_gloo_group.cache_clear()
    dist.destroy_process_group()
    time.sleep(0.1)  # DistributedDataParallel never lets go of its group: time for its threads to give back theirs


def synchronize() -> None:
    """Wait until every process has come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # else NCCL guesses the device and warns
    else:
        dist.barrier()


@functools.lru_cache
def _global_gloo_group() -> dist.ProcessGroup | None:
    """A gloo group of all processes."""
    if dist.get_backend() != "nccl":
        return dist.group.WORLD
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo"))


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the `data` of every process, by rank, on every process. `data` must be picklable."""
    if get_world_size() == 1:
        return [data]
    group = group or _global_gloo_group()
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the `data` of every process, by rank, on process `dst`, and [] on the others. `data` must be picklable."""
    if get_world_size() == 1:
        return [data]
    group = group or _global_gloo_group()
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    if dist.get_rank(group) != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    gathered: list[Any] = [None] * world_size
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """A random number that is the same on all processes; drawn from numpy's generator of rank 0."""
    return int(all_gather(np.random.randint(2**31))[0])


def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Sum, or average, scalar tensors over all processes.

    Every process gives the same keys. The result is complete on rank 0 only; the tensors carry no gradient.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)  # the same order everywhere
        values = torch.stack([input_dict[name] for name in names], dim=0)
        dist.reduce(values, dst=0)
        if get_rank() == 0 and average:
            values /= world_size
        return dict(zip(names, values))
