"""Processes that torchrun or SLURM has started: how they are described, and how they meet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from grounding_dino.engine.launchers import store_of_this_start, worker_of_environment

import pytest
from torch.distributed import HashStore, Store, TCPStore

TORCHRUN = {
    **{"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}


def test_a_process_knows_its_place() -> None:
    worker = worker_of_environment({**TORCHRUN, "TORCHELASTIC_RUN_ID": "job7"})
    assert worker is not None
    assert (worker.rank, worker.local_rank, worker.world_size, worker.local_world_size) == (5, 1, 8, 4)
    assert worker.run_id == "job7"


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_without_a_starter_there_is_no_place(missing: str) -> None:
    assert worker_of_environment({name: value for name, value in TORCHRUN.items() if name != missing}) is None


def test_jobs_without_an_id_of_their_own_are_told_apart() -> None:
    # "none" is what --rdzv-id gives every job
    jobs = [worker_of_environment({**TORCHRUN, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}) for port in "12"]
    assert jobs[0] is not None and jobs[1] is not None and jobs[0].run_id != jobs[1].run_id


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"RANK": "first"}, "the environment variable RANK is 'first'"),
        ({"LOCAL_WORLD_SIZE": "3"}, "start equally many processes on each machine"),
        ({"LOCAL_RANK": "0"}, "start equally many processes on each machine"),
    ],
)
def test_an_environment_that_cannot_be(changed: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        worker_of_environment({**TORCHRUN, **changed})


def starts(stores: list[Store], rounds: int) -> list[list[str]]:
    """What each process reads of the first one's in each round, where all write under the same key."""
    found: list[list[str]] = []
    with ThreadPoolExecutor(len(stores)) as processes:
        for number in range(rounds):

            def read(rank: int, number: int = number) -> str:
                store = store_of_this_start(stores[rank], rank, len(stores), timedelta(seconds=20))
                if rank == 0:
                    store.set("address", f"start {number}")
                return str(store.get("address").decode())

            found.append(list(processes.map(read, range(len(stores)))))
    return found


def test_a_restarted_process_reads_nothing_of_earlier_starts() -> None:
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    clients = [TCPStore("localhost", server.port, wait_for_workers=False) for _ in range(3)]
    assert starts(clients, 3) == [[f"start {number}"] * 3 for number in range(3)]


def test_a_start_goes_on_after_one_that_was_cut_short() -> None:
    store = HashStore()
    store.set("start/1", "of a process that died before the first one came")
    assert starts([store, store], 2) == [["start 0"] * 2, ["start 1"] * 2]


def test_a_process_that_does_not_come_is_an_error() -> None:
    store = HashStore()
    store.set("start/1", "of a process that is no more")
    with pytest.raises(TimeoutError, match="process 1 of 2 did not come"):
        store_of_this_start(store, 0, 2, timedelta(seconds=0.2))
