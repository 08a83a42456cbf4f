"""Starting a function in several processes, one a GPU (or, without GPUs, as many as asked for).

Without torch until processes start: the package imports this module, whose function has its name, at once.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)


def _find_free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call `main_func(*args)` in every process of a job; to be called on each machine of it.

    One process (or none: a machine without GPU) runs in place. Several talk over NCCL, or over gloo where there is no
    GPU; `main_func` then has to be importable, since they are started afresh.

    Args:
        num_gpus_per_machine: processes on each machine.
        machine_rank: number of this machine, from 0.
        dist_url: where they meet, such as "tcp://10.0.0.1:29500"; "auto" finds a free port on a lone machine.
        timeout: of the processes' communication.

    Raises:
        ValueError: several machines and no address where they meet.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError(
                f"a job on {num_machines} machines needs --dist-url, the address of the first: tcp://HOST:PORT."
            )
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        logger.warning("file:// is no reliable meeting point for several machines; tcp:// is")
    import torch.multiprocessing as mp

    mp.start_processes(
        _distributed_worker,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, tuple(args), timeout),
        daemon=False,
        start_method="spawn",
    )


def _distributed_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: Sequence[Any],
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    import torch
    import torch.distributed as dist

    from detectron2.utils import comm

    has_gpu = torch.cuda.is_available()
    if has_gpu and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus is {num_gpus_per_machine}, but this machine has {torch.cuda.device_count()} GPUs."
        )
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * num_gpus_per_machine + local_rank,
        timeout=timeout,
    )
    if has_gpu:
        torch.cuda.set_device(local_rank)
    comm.create_local_process_group(num_gpus_per_machine)
    comm.synchronize()  # a process that starts to work before the others exist may time out
    main_func(*args)
    # Not after an exception: with the other processes gone or stuck, this could wait for them forever.
    comm._leave_job()
