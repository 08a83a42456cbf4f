"""Records that stay on disk: the same as those of a list, whatever happens to shards and indices."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from grounding_dino.data import shard_index, streaming
from grounding_dino.data.datasets.grit import GritReader
from grounding_dino.data.datasets.odvg import OdvgReader
from grounding_dino.data.datasets.rows import RowError
from grounding_dino.data.record_sets import FACTS, ListRecords, repeat_factors
from grounding_dino.data.streaming import LazyRecords, ShardError, find_shards, register_stream

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler
from PIL import Image
from torch.utils.data import DataLoader

Row = dict[str, Any]
Rows = Callable[..., Row]
Write = Callable[[str, Iterable[Any]], str]
READER = OdvgReader("pictures")
NAMES = {0: "cat", 1: "dog", 2: "hat"}

pytestmark = pytest.mark.usefixtures("cache")


def detection_row(number: int, labels: Iterable[int], crowd: bool = False) -> Row:
    instances = [
        {"bbox": [1, 1, 9, 9], "label": label, "category": NAMES[label], "iscrowd": int(crowd)} for label in labels
    ]
    return {"filename": f"{number}.png", "height": 20, "width": 30, "detection": {"instances": instances}}


def names_of(records: Iterable[Row]) -> list[str]:
    return [os.path.basename(record["file_name"]) for record in records]


def test_rows_of_several_files_are_one_sequence(grounding_row: Rows, write_jsonl: Write, tmp_path: Path) -> None:
    rows = [grounding_row(number) for number in range(7)]
    write_jsonl("rows-0.jsonl", rows[:4])
    write_jsonl("rows-1.jsonl", [])
    write_jsonl("rows-2.jsonl", rows[4:])
    records = LazyRecords(tmp_path / "rows-*.jsonl", READER, "set")
    assert list(records) == [{**READER(row), "dataset_name": "set"} for row in rows]
    assert len(records) == 7 and records[-1] == records[6] and records[1:3] == [records[1], records[2]]
    with pytest.raises(IndexError):
        records[7]


def test_pairs_of_tar_files_hold_their_picture(grounding_row: Rows, write_tar: Write) -> None:
    rows = [grounding_row(number) for number in range(5)]
    records = LazyRecords([write_tar("a.tar", rows[:3]), write_tar("b.tar", rows[3:])], OdvgReader(""))
    assert names_of(records) == [f"{number:04}.png" for number in range(5)]
    for number, record in enumerate(records):
        assert record["caption"] == rows[number]["grounding"]["caption"]
        with Image.open(io.BytesIO(record["image_bytes"])) as image:
            assert image.getpixel((0, 0))[0] == number
            assert image.size == (record["width"], record["height"])


def test_members_of_long_names_and_folders_are_found(grounding_row: Rows, write_tar: Write, picture: Any) -> None:
    key = "folder/" + "x" * 150 + "_17"
    row = {key: value for key, value in grounding_row(17).items() if key not in ("height", "width")}
    members = [(key + ".json", json.dumps(row).encode()), ("readme", b"?"), (key + ".png", picture(17, 40, 30))]
    (record,) = LazyRecords(write_tar("long.tar", members), OdvgReader(""))
    assert record["file_name"].endswith(f"long.tar/{key}.png")
    assert (record["width"], record["height"]) == (40, 30), "the size of the picture, since the row has none"


def test_grit_shards_are_read(write_tar: Write, picture: Any) -> None:
    row = {"key": "7", "caption": "a red cat", "noun_chunks": [[0, 9, 0.1, 0.1, 0.5, 0.5, 0.9]], "url": "x"}
    members = [("7.json", json.dumps(row).encode()), ("7.jpg", picture(7, 10, 20)), ("7.txt", b"a red cat")]
    (record,) = LazyRecords(write_tar("grit.tar", members), GritReader(""))
    assert record["annotations"][0]["bbox"] == pytest.approx([1, 2, 4, 8])


@pytest.mark.parametrize("names", [None, NAMES], ids=["own categories", "class names"])
def test_facts_are_those_of_the_records(names: dict[int, str] | None, grounding_row: Rows, write_jsonl: Write) -> None:
    rows = [detection_row(0, [2, 0, 2]), detection_row(1, [1], crowd=True), detection_row(2, [0])]
    rows += [grounding_row(number) for number in range(3, 6)]
    reader = OdvgReader("pictures", names)
    records = LazyRecords([write_jsonl("a.jsonl", rows[:2]), write_jsonl("b.jsonl", rows[2:])], reader)
    for lazy in (records, records.with_objects()):
        listed = ListRecords(list(lazy))
        for name, dtype in FACTS.items():
            assert lazy.column(name).dtype == dtype
            assert lazy.column(name).tolist() == listed.column(name).tolist(), name
    assert names_of(records.with_objects()) == ["0.png", *(f"{number}.png" for number in range(2, 6))]
    everything = records.with_objects()
    assert everything.with_objects() is everything


def test_repeat_factors_equal_detectron2s(write_jsonl: Write) -> None:
    rows = [detection_row(number, [0, 1] if number % 3 == 0 else [0]) for number in range(8)] + [detection_row(8, [2])]
    rows.append(detection_row(9, []))
    records = LazyRecords(write_jsonl("rows.jsonl", rows), OdvgReader("pictures", NAMES))
    for sqrt in (True, False):
        expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(list(records), 0.7, sqrt=sqrt)
        torch.testing.assert_close(torch.from_numpy(repeat_factors(records, 0.7, sqrt=sqrt)), expected)


# ---------------------------------------------------------------------------------------------------- broken rows


def test_broken_rows_are_counted_with_their_first_file_and_line(
    grounding_row: Rows, write_jsonl: Write, caplog: pytest.LogCaptureFixture
) -> None:
    good = grounding_row(1)
    empty = {**good, "grounding": {"caption": " ", "regions": []}}
    first = write_jsonl("rows-0.jsonl", [good, "{broken", "", empty, good])
    second = write_jsonl("rows-1.jsonl", [empty, good])
    for opened in ("anew", "from the cache"):
        caplog.clear()
        records = LazyRecords([first, second], READER)
        assert len(records) == 3, opened
        (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert re.search(rf"not JSON\): 1 \(first: {re.escape(first)}:2", warning)
        assert re.search(rf"empty caption\): 2 \(first: {re.escape(first)}:4", warning)
        with pytest.raises(RowError, match=rf"STRICT_ON.*{re.escape(first)}:2"):
            LazyRecords([first, second], READER, strict=True)


def test_a_set_that_yields_nothing_is_an_error(grounding_row: Rows, write_jsonl: Write) -> None:
    with pytest.raises(RowError, match="yields nothing.*not JSON.*rows.jsonl:1"):
        LazyRecords(write_jsonl("rows.jsonl", ["{"]), READER)
    records = LazyRecords(write_jsonl("none.jsonl", [detection_row(0, [])]), OdvgReader("", NAMES))
    with pytest.raises(ValueError, match="none.jsonl has an object"):
        records.with_objects()


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("9.json", b"{}")], r"a row without its picture\): 1 \(first: .*bad.tar:9.json"),
        ([("9.png", b"")], r"a picture without its row\): 1 \(first: .*bad.tar:9.png"),
        ([("9.png", b""), ("9.jpg", b"")], r"a second picture of the same key\): 1 \(first: .*bad.tar:9.jpg"),
        ([("9.png", b""), ("9.json", b"[]")], r"no JSON object\): 1 \(first: .*bad.tar:9.json"),
        ([("9.png", b"?"), ("9.json", b"{}")], r"not readable, whose row gives no size\): 1 \(first: .*bad.tar:9.json"),
    ],
)
def test_faulty_members_are_named(
    members: list[tuple[str, bytes]],
    fault: str,
    grounding_row: Rows,
    write_tar: Write,
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = LazyRecords(write_tar("bad.tar", [*members, grounding_row(1)]), OdvgReader(""))
    assert names_of(records) == ["0001.png"]
    assert re.search(fault, caplog.text)


@pytest.mark.parametrize("cut", ["in a picture", "in a header", "before the end mark"])
def test_a_tar_file_that_is_cut_off_keeps_what_is_whole(
    cut: str, grounding_row: Rows, write_tar: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar("cut.tar", [grounding_row(number) for number in range(3)])
    whole = LazyRecords(path, OdvgReader(""))
    names = names_of(whole)
    header, start = (int(whole._indices[0].columns[name][2]) for name in ("picture", "start"))
    end = start + 512
    size = {"in a picture": header + 520, "in a header": header + 100, "before the end mark": end}[cut]
    os.truncate(path, size)
    records = LazyRecords(path, OdvgReader(""))
    assert names_of(records) == names[: 3 if cut == "before the end mark" else 2]
    assert re.search(r"the tar file is (damaged or )?cut off.*: 1 \(first: .*cut.tar", caplog.text)


def test_a_header_that_is_overwritten_is_no_silent_end(
    grounding_row: Rows, write_tar: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar("bad.tar", [grounding_row(number) for number in range(3)])
    header = int(LazyRecords(path, OdvgReader(""))._indices[0].columns["picture"][1])
    with open(path, "r+b") as file:
        file.seek(header)
        file.write(b"x" * 512)
    assert len(LazyRecords(path, OdvgReader(""))) == 1
    assert f"damaged or cut off): 1 (first: {path}" in caplog.text


def test_what_cannot_be_streamed_is_refused(grounding_row: Rows, write_jsonl: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.jsonl.gz' is compressed.*gunzip"):
        LazyRecords(write_jsonl("rows.jsonl.gz", [grounding_row(0)]), READER)
    with pytest.raises(ValueError, match=r"rows.tar' is no \(uncompressed\) tar file"):
        LazyRecords(write_jsonl("rows.tar", [grounding_row(0)] * 9), READER)
    for nothing in (tmp_path / "no.jsonl", tmp_path / "no-*.tar", tmp_path / "no-{0..2}.tar"):
        with pytest.raises(FileNotFoundError, match="no shard '.*no"):
            LazyRecords(nothing, READER)


def test_names_in_tar_files_are_no_paths(grounding_row: Rows, write_tar: Write, picture: Any, tmp_path: Path) -> None:
    members = [("../../evil.png", picture(1, 24, 32)), ("../../evil.json", json.dumps(grounding_row(1)).encode())]
    before = set(tmp_path.parent.rglob("*"))
    (record,) = LazyRecords(write_tar("evil.tar", members), OdvgReader(""))
    assert record["image_bytes"] == picture(1, 24, 32)
    new = {path.name for path in set(tmp_path.parent.rglob("*")) - before}
    assert not any("evil" in name and not name.endswith((".tar", ".index")) for name in new)


# -------------------------------------------------------------------------------------------------------- indices


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose index is made."""
    made: list[str] = []
    build = shard_index._build

    def counting(path: str, *arguments: Any) -> Any:
        made.append(path)
        return build(path, *arguments)

    monkeypatch.setattr(shard_index, "_build", counting)
    return made


def test_an_index_is_made_once_for_each_shard_and_reader(
    grounding_row: Rows, write_jsonl: Write, builds: list[str]
) -> None:
    first, second = (write_jsonl(name, [grounding_row(0), detection_row(1, [0])]) for name in ("a.jsonl", "b.jsonl"))
    expected = list(LazyRecords([first], READER))
    assert list(LazyRecords([first], OdvgReader("pictures"))) == expected
    assert builds == [first]
    LazyRecords([first, second], READER)
    assert builds == [first, second]
    LazyRecords([first], OdvgReader("pictures", NAMES))
    assert builds == [first, second, first]


def test_a_shard_that_has_changed_gets_another_index(
    grounding_row: Rows, write_jsonl: Write, builds: list[str]
) -> None:
    path = write_jsonl("rows.jsonl", [grounding_row(0)])
    LazyRecords(path, READER)
    write_jsonl("rows.jsonl", [grounding_row(1), grounding_row(2)])
    assert names_of(LazyRecords(path, READER)) == ["1.png", "2.png"]
    os.utime(path, ns=(1, 1))
    LazyRecords(path, READER)
    assert len(builds) == 3


@pytest.mark.parametrize("damage", [0, 10, -1, None], ids=["first byte", "header", "last byte", "cut off"])
def test_a_damaged_index_is_made_anew(
    damage: int | None, grounding_row: Rows, write_jsonl: Write, builds: list[str], cache: Path
) -> None:
    path = write_jsonl("rows.jsonl", [grounding_row(number) for number in range(5)])
    expected = list(LazyRecords(path, READER))
    (index,) = cache.rglob("*.index")
    content = bytearray(index.read_bytes())
    if damage is None:
        content = content[:-3]
    else:
        content[damage] ^= 255
    index.write_bytes(content)
    for _ in range(2):
        assert list(LazyRecords(path, READER)) == expected
    assert len(builds) == 2


def test_a_cache_folder_that_cannot_be_written_to_is_named(
    grounding_row: Rows, write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot be written to .*file.*set GROUNDING_DINO_CACHE"):
        LazyRecords(write_jsonl("rows.jsonl", [grounding_row(0)]), READER)


class FaultyReader:
    """A reader with a mistake in its code."""

    def __call__(self, row: Row, report: object = None) -> Row:
        return {"file_name": row["name"]}


def test_a_mistake_in_a_reader_names_the_row(grounding_row: Rows, write_jsonl: Write) -> None:
    path = write_jsonl("rows.jsonl", [grounding_row(0)])
    with pytest.raises(
        RuntimeError, match=rf"{re.escape(path)}:1: FaultyReader failed on this row: KeyError\('name'\)"
    ):
        LazyRecords(path, FaultyReader())


# ------------------------------------------------------------------------------------------------------ processes


def test_pickled_records_are_small_and_the_same(grounding_row: Rows, write_jsonl: Write) -> None:
    records = LazyRecords(write_jsonl("rows.jsonl", [grounding_row(number) for number in range(500)]), READER, "set")
    assert records[3]["dataset_name"] == "set"
    content = pickle.dumps(records)
    assert len(content) < 4000, "not the index itself"
    assert list(pickle.loads(content)) == list(records)


def _as_is(record: Row) -> Row:
    return record


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_forked_processes_do_not_share_a_place_in_a_file(
    kind: str, grounding_row: Rows, write_jsonl: Write, write_tar: Write
) -> None:
    rows = [grounding_row(number) for number in range(40)]
    path = write_jsonl("rows.jsonl", rows) if kind == "jsonl" else write_tar("rows.tar", rows)
    records = LazyRecords(path, OdvgReader(""))
    expected = list(records)  # opens the file in this process
    loader = DataLoader(records, batch_size=None, num_workers=2, multiprocessing_context="fork", collate_fn=_as_is)
    assert list(loader) == expected


def test_few_files_are_open_at_once(
    grounding_row: Rows, write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_MAX_OPEN", 2)
    for number in range(5):
        write_jsonl(f"rows-{number}.jsonl", [grounding_row(number)])
    records = LazyRecords(tmp_path, READER)
    for _ in range(2):
        assert names_of(records) == [f"{number}.png" for number in range(5)]
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert sum(name.endswith(".jsonl") for name in opened) == 2


@pytest.mark.parametrize("what", ["gone", "changed", "cut off"])
def test_a_shard_that_changes_during_a_run_is_named(what: str, grounding_row: Rows, write_tar: Write) -> None:
    path = write_tar("rows.tar", [grounding_row(number) for number in range(200)])
    records = LazyRecords(path, OdvgReader(""))
    if what == "gone":
        os.remove(path)
        sentence = "cannot be opened any more"
    elif what == "changed":
        os.utime(path, ns=(1, 1))
        sentence = "was changed after the run began"
    else:
        records[0]  # opens it
        os.truncate(path, 700)
        sentence = "cannot be read any more"
    with pytest.raises(ShardError, match=rf"{re.escape(path)}.* {sentence}|row 199 of {re.escape(path)}.*{sentence}"):
        records[199]  # far behind what was read ahead


# ---------------------------------------------------------------------------------------------------------- names


def test_shards_are_files_folders_and_patterns(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"s-{number:03}.tar").touch()
    (tmp_path / "rows.jsonl").touch()
    folder = str(tmp_path)
    every = [f"{folder}/s-{number:03}.tar" for number in range(8, 12)]
    assert find_shards(tmp_path) == find_shards(f"{folder}/*.tar") == find_shards(folder + "/s-{008..011}.tar") == every
    assert find_shards([f"{folder}/rows.jsonl", folder + "/s-{009..010}.tar"]) == [f"{folder}/rows.jsonl", *every[1:3]]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").touch()
    assert find_shards(tmp_path / "sub") == [f"{folder}/sub/b.jsonl"]


def test_a_registered_stream_is_read_when_it_is_used(
    grounding_row: Rows, write_jsonl: Write, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = "streaming_test_set"
    register_stream(name, tmp_path / "rows.jsonl", READER)
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    write_jsonl("rows.jsonl", [grounding_row(0)])
    (record,) = DatasetCatalog.get(name)
    assert record["dataset_name"] == name
    with pytest.raises(ValueError, match="there is a data set 'streaming_test_set' already"):
        register_stream(name, "rows.jsonl", READER)
