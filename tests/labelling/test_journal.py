"""Records on disk, as a killed run leaves them."""

from __future__ import annotations

import json
import resource
from pathlib import Path

from grounding_dino.labelling import journal as journals
from grounding_dino.labelling.journal import Journal, OutputLock

import pytest


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SHARD_PICTURES", 4)


def record(number: int, **more: object) -> dict[str, object]:
    return {"number": number, "detections": [], **more}


def test_records_come_back_in_order_whatever_order_they_came_in(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 10)
    for numbers in [[9, 3], [0, 1, 2], [8, 4], [5, 6, 7]]:
        assert journal.add([record(number) for number in numbers]) == len(numbers)
    again = Journal(tmp_path, 10)
    assert [r["number"] for r in again] == list(range(10))
    assert again.is_complete and again.labelled == 10


@pytest.mark.parametrize("torn", [b'{"number": 2, "detec', b'{"number": 2, "detections": []}', b"\0\0\0", b"\0\0\n"])
def test_a_torn_line_does_not_count_and_harms_none_that_follow(tmp_path: Path, torn: bytes) -> None:
    Journal(tmp_path, 4).add([record(0), record(1)])
    with open(tmp_path / "records-000000.jsonl", "ab") as file:
        file.write(torn)
    journal = Journal(tmp_path, 4)
    assert [journal.has(number) for number in range(4)] == [True, True, False, False]
    journal.add([record(2), record(3)])
    assert [r["number"] for r in Journal(tmp_path, 4)] == [0, 1, 2, 3]


def test_every_prefix_of_a_journal_is_a_journal(tmp_path: Path) -> None:
    """Wherever a kill cuts the file."""
    Journal(tmp_path, 3).add([record(0), record(1, error="broken"), record(2)])
    file = tmp_path / "records-000000.jsonl"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        journal = Journal(tmp_path, 3)
        missing = [number for number in range(3) if not journal.has(number)]
        journal.add([record(number) for number in missing])
        assert [r["number"] for r in Journal(tmp_path, 3)] == [0, 1, 2]


def test_a_picture_has_one_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2)
    assert journal.add([record(0), record(0)]) == 1
    assert journal.add([record(0), record(1)]) == 1
    assert len((tmp_path / "records-000000.jsonl").read_text().splitlines()) == 2


def test_failures_can_be_tried_again(tmp_path: Path) -> None:
    Journal(tmp_path, 2).add([record(0), {"number": 1, "error": "gone"}])
    assert Journal(tmp_path, 2).failed == 1
    journal = Journal(tmp_path, 2, retry_failed=True)
    assert (journal.retried, journal.has(1)) == (1, False)
    journal.add([record(1)])
    assert [("error" in r) for r in Journal(tmp_path, 2)] == [False, False]


def test_lines_about_other_pictures_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "records-000000.jsonl").write_text('{"number": 77}\n[]\n3\n{"number": "0"}\n{}\n')
    journal = Journal(tmp_path, 4)
    assert journal.labelled == 0 and list(journal) == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 4)
    journal.add([record(0)])
    length = (tmp_path / "records-000000.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + 10, limits[1]))  # a file gets no larger: part of a line fits
    try:
        with pytest.raises(OSError):
            journal.add([record(1)])
        assert not journal.has(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.add([record(2)])  # there is room again
    assert [r["number"] for r in Journal(tmp_path, 4)] == [0, 2]


def test_records_survive_the_bytes_of_any_name(tmp_path: Path) -> None:
    Journal(tmp_path, 1).add([{"number": 0, "error": "\udcff é"}])
    (line,) = (tmp_path / "records-000000.jsonl").read_bytes().splitlines()
    assert line.isascii() and json.loads(line)["error"] == "\udcff é"


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    lock = OutputLock(tmp_path / "lock")
    with pytest.raises(BlockingIOError, match=r"another run is writing .*\(process"):
        OutputLock(tmp_path / "lock")
    lock.release()
    OutputLock(tmp_path / "lock").release()  # the file that stays is no obstacle
