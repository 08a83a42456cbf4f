"""Communication, alone and between two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.memory import retry_if_cuda_oom


def test_alone() -> None:
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather({"a": 1}) == [{"a": 1}]
    assert comm.gather("x") == ["x"]
    assert comm.reduce_dict({"loss": torch.tensor(2.0)}) == {"loss": torch.tensor(2.0)}
    assert 0 <= comm.shared_random_seed() < 2**31


def communicate(port: int, folder: str, rank: int) -> None:
    """What each of the two processes does; its findings go into a file."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    comm.create_local_process_group(2)
    comm.synchronize()
    seed_all_rng(rank)
    reduced = comm.reduce_dict({"b": torch.tensor(float(rank)), "a": torch.tensor(3.0)})
    summed = comm.reduce_dict({"b": torch.tensor(float(rank))}, average=False)
    found = {
        "sizes": (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()),
        "main": comm.is_main_process(),
        "all": comm.all_gather({"rank": rank, "long": "x" * (1 + 1000 * rank)}),
        "gathered": comm.gather(rank, dst=1),
        "reduced": {name: value.item() for name, value in reduced.items()},
        "summed": summed["b"].item(),
        "seed": comm.shared_random_seed(),
    }
    leave = getattr(comm, "_leave_job", None)  # upstream has none
    (leave or dist.destroy_process_group)()
    found["threads"] = names_of_threads() if leave else []
    torch.save(found, Path(folder) / f"{rank}.pt")


def names_of_threads() -> list[str]:
    """Of this process, where the system lists them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Started as scripts: what pytest imported by path cannot be imported by name in another process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["sizes"] == (2, 0, 0, 2) and second["sizes"] == (2, 1, 1, 2)
    assert first["main"] and not second["main"]
    assert first["all"] == second["all"]
    assert [entry["rank"] for entry in first["all"]] == [0, 1]
    assert [len(entry["long"]) for entry in first["all"]] == [1, 1001]
    assert (first["gathered"], second["gathered"]) == ([], [0, 1])
    assert first["reduced"] == {"a": 3.0, "b": 0.5}
    assert first["summed"] == 1.0
    assert first["seed"] == second["seed"]
    # a thread of communication that outlives the interpreter aborts the process, now and then
    assert not [name for name in first["threads"] + second["threads"] if "gloo" in name]


def test_seeding_repeats_numbers() -> None:
    drawn = []
    for _ in range(2):
        seed_all_rng(5)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_retry_after_running_out_of_memory() -> None:
    calls = []

    def greedy(value: Any) -> Any:
        calls.append(value)
        if len(calls) < 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. ")
        return value

    assert retry_if_cuda_oom(greedy)(4) == 4
    assert len(calls) == 3
    with pytest.raises(ZeroDivisionError):
        retry_if_cuda_oom(lambda: 1 / 0)()


if __name__ == "__main__":
    communicate(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
