"""The training loader over sets on disk and in memory: one stream, whoever reads it and wherever reading starts."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from grounding_dino.data import loader as loader_module
from grounding_dino.data import streaming
from grounding_dino.data.datasets.odvg import OdvgReader
from grounding_dino.data.loader import BatchStream, build_stream_loader, build_train_loader, start_stream_at
from grounding_dino.data.record_sets import ListRecords, RecordSets
from grounding_dino.data.streaming import LazyRecords, register_stream
from grounding_dino.engine.trainer import check_test_sets

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from torch.utils.data import DataLoader

Record = dict[str, Any]
Rows = Callable[..., Record]
Write = Callable[[str, Iterable[Any]], str]

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def mixed(grounding_row: Rows, write_jsonl: Write, write_tar: Write) -> RecordSets:
    """Twelve records in memory, eight in a file of rows, eight in two tar files; ids 0 ... 27."""
    shards = [write_tar(f"{n}.tar", [grounding_row(number) for number in range(n, n + 4)]) for n in (20, 24)]
    listed = [{**OdvgReader("")(grounding_row(number)), "id": number} for number in range(12)]
    rows = write_jsonl("rows.jsonl", [grounding_row(number) for number in range(12, 20)])
    return RecordSets([ListRecords(listed), LazyRecords(rows, OdvgReader("")), LazyRecords(shards, OdvgReader(""))])


def number_of(record: Record) -> int:
    return int(re.findall(r"\d+", os.path.basename(record["file_name"]))[0])


def drawing_mapper(record: Record) -> Record:
    return {"id": number_of(record), "drawn": np.random.rand()}


def build(records: RecordSets, num_workers: int = 0, mapper: Any = drawing_mapper, **options: Any) -> DataLoader:
    options = {"total_batch_size": 2, "seed": 5, "num_workers": num_workers, **options}
    return build_stream_loader(records, mapper, **options)


def first(loader: DataLoader, count: int) -> list[Any]:
    return list(itertools.islice(iter(loader), count))


# ------------------------------------------------------------------------------------------------------- batches


def plain_batches(records: list[Record], size: int, seed: int, rank: int, world: int) -> Iterator[list[Any]]:
    """What the stream of records in memory is, said plainly."""
    generator = torch.Generator().manual_seed(seed)
    endless = (index for _ in itertools.count() for index in torch.randperm(len(records), generator=generator).tolist())
    waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for position, index in itertools.islice(enumerate(endless), rank, None, world):
        batch = waiting[records[index]["width"] > records[index]["height"]]
        batch.append((position, index))
        if len(batch) == size:
            yield list(batch)
            batch.clear()


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("start", [0, 7])
def test_the_stream_of_records_in_memory_is_the_plain_one(
    world: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"width": 3 + number % 3, "height": 4} for number in range(10)]
    monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        stream = BatchStream(records, 3, seed=8)
        stream.start = start
        plain = itertools.islice(plain_batches(records, 3, 8, rank, world), start, start + 12)
        assert list(itertools.islice(stream, 12)) == list(plain)


@pytest.mark.parametrize("shares", [None, [0.2, 0.5, 0.3]], ids=["epochs", "weights"])
def test_workers_and_the_start_do_not_change_the_batches(mixed: RecordSets, shares: list[float] | None) -> None:
    whole = first(build(mixed, shares=shares), 30)
    assert first(build(mixed, num_workers=2, shares=shares), 30) == whole
    assert first(build(mixed, shares=shares, seed=6), 30) != whole
    late = build(mixed, num_workers=2, shares=shares, seed=1)
    start_stream_at(late, 17, seed=5)
    assert first(late, 13) == whole[17:]


def test_what_lies_before_a_start_is_not_read(mixed: RecordSets, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(LazyRecords, "_read", _counting(LazyRecords._read, read))
    loader = build(mixed)
    start_stream_at(loader, 1000, seed=5)
    samples = [sample["id"] for batch in first(loader, 5) for sample in batch]
    assert len(samples) == 10
    assert sorted(read) == sorted(number for number in samples if number >= 12)


def _counting(function: Callable[..., Record], read: list[int]) -> Callable[..., Record]:
    def counted(*arguments: Any) -> Record:
        record = function(*arguments)
        read.append(number_of(record))
        return record

    return counted


def test_an_epoch_has_every_record_of_all_sets_once(mixed: RecordSets) -> None:
    batches = first(build(mixed, group_by_orientation=False), 28)
    for epoch in (batches[:14], batches[14:]):
        assert sorted(sample["id"] for batch in epoch for sample in batch) == list(range(28))


def test_batches_have_one_orientation(mixed: RecordSets) -> None:
    for batch in first(build(mixed), 40):
        assert len({sample["id"] % 3 == 0 for sample in batch}) == 1


def test_weights_set_the_shares_of_sets(mixed: RecordSets) -> None:
    counts = Counter(
        min(index // 12, 1)
        for batch in itertools.islice(BatchStream(mixed, 4, seed=0, shares=[0.75, 0.125, 0.125]), 500)
        for _, index in batch
    )
    assert counts[0] / 2000 == pytest.approx(0.75, abs=0.02)


# ------------------------------------------------------------------------------------------------------- processes

SCRIPT = """
import itertools, json, sys
import grounding_dino
from grounding_dino.data.datasets.odvg import OdvgReader
from grounding_dino.data.loader import build_stream_loader
from grounding_dino.data.streaming import LazyRecords

from detectron2.engine import launch
from detectron2.utils import comm


def mapper(record):
    return {"name": record["file_name"]}


def read(shards, out):
    records = LazyRecords(shards, OdvgReader(""))
    options = dict(total_batch_size=4, num_workers=2, seed=1, group_by_orientation=False)
    batches = itertools.islice(iter(build_stream_loader(records, mapper, **options)), 10)
    with open(f"{out}/{comm.get_rank()}.json", "w") as file:
        json.dump([[sample["name"] for sample in batch] for batch in batches], file)


if __name__ == "__main__":
    launch(read, 2, dist_url="auto", args=(sys.argv[1].split(","), sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_of_two_workers_read_every_record_once(
    grounding_row: Rows, write_tar: Write, tmp_path: Path
) -> None:
    shards = [write_tar(f"{n}.tar", [grounding_row(number) for number in range(n, n + 5)]) for n in range(0, 20, 5)]
    (tmp_path / "read.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(tmp_path / "read.py"), ",".join(shards), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in (slice(0, 5), slice(5, 10)):
        names = [[name for batch in part[epoch] for name in batch] for part in parts]
        assert not set(names[0]) & set(names[1])
        assert len(set(names[0] + names[1])) == len(names[0] + names[1]) == 20


# ------------------------------------------------------------------------------------------------------- bad input


def test_unusable_records_are_counted_where_the_training_runs(
    mixed: RecordSets, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(record: Record) -> Record | None:
        return None if number_of(record) in (3, 15) else drawing_mapper(record)

    monkeypatch.setattr(loader_module, "REPORT_PERIOD", 28)
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        batches = first(build(mixed, num_workers=2, mapper=refusing, group_by_orientation=False), 28)
    assert {"training goes on without 3.png", "training goes on without 15.png"} <= set(caplog.messages)
    found = re.search(r"(\d+) times in 56 samples .* 2 records are unusable", caplog.messages[-1])
    assert found is not None and int(found[1]) >= 4, "two records in two epochs"
    assert storage.latest()["replaced_samples"][0] == int(found[1])
    assert not any("replaced" in sample for batch in batches for sample in batch)


def test_a_replacement_is_of_the_same_set(mixed: RecordSets) -> None:
    def only_rows(record: Record) -> Record | None:
        return None if number_of(record) in range(12, 19) else drawing_mapper(record)

    batches = first(build(mixed, mapper=only_rows, group_by_orientation=False), 14)
    counts = Counter(sample["id"] for batch in batches for sample in batch)
    assert counts[19] == 8
    assert all(counts[number] == 1 for number in (*range(12), *range(20, 28)))


# A loader whose worker raised waits ten seconds for its workers to end (torch 2.15).
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_that_vanishes_ends_the_training_with_its_name(
    num_workers: int, mixed: RecordSets, tmp_path: Path
) -> None:
    os.remove(tmp_path / "20.tar")
    with pytest.raises(streaming.ShardError, match=r"20.tar cannot be opened any more"):
        first(build(mixed, num_workers=num_workers), 20)


def test_a_dying_worker_is_an_error_and_no_endless_wait(mixed: RecordSets) -> None:
    def dying(record: Record) -> Record:
        if number_of(record) == 4:
            os._exit(3)
        return drawing_mapper(record)

    with pytest.raises(RuntimeError, match="worker"):
        first(build(mixed, num_workers=2, mapper=dying), 20)


# ---------------------------------------------------------------------------------------------------- from a config


@pytest.fixture
def cfg(tiny_cfg: CfgNode, grounding_row: Rows, write_tar: Write, write_jsonl: Write) -> Iterator[CfgNode]:
    """A training on streams: tar files of captions, and rows, whose pictures are not there, of classes and with
    categories of their own."""
    before = set(DatasetCatalog)
    write_tar("a.tar", [grounding_row(number) for number in range(6)])
    shards = write_tar("b.tar", [grounding_row(number) for number in range(6, 10)]).replace("b.tar", "[ab].tar")
    boxes = [{"bbox": [1, 1, 9, 9], "label": label, "category": ("cat", "dog")[label]} for label in (0, 1)]
    rows = [
        {"filename": f"{n}.png", "height": 9, "width": 9, "detection": {"instances": boxes[: min(n, 2)]}}
        for n in range(5)
    ]
    register_stream("disk_captions", shards, OdvgReader(""))
    reader = OdvgReader("", {0: "cat", 1: "dog"})
    register_stream("disk_classes", write_jsonl("classes.jsonl", [*rows, "{"]), reader, thing_classes=["cat", "dog"])
    register_stream("disk_categories", write_jsonl("categories.jsonl", rows[1:]), OdvgReader(""))
    tiny_cfg.DATASETS.TRAIN = ("disk_captions",)
    tiny_cfg.DATALOADER.NUM_WORKERS, tiny_cfg.SOLVER.IMS_PER_BATCH = 0, 2
    tiny_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    tiny_cfg.INPUT.MIN_SIZE_TRAIN, tiny_cfg.INPUT.MAX_SIZE_TRAIN = (32, 48), 64
    yield tiny_cfg
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def content(batches: list[list[Record]]) -> list[Any]:
    return [[(s["file_name"], s["image"].tolist(), s["caption"], s["phrases"]) for s in batch] for batch in batches]


def test_a_training_on_tar_files_goes_on_exactly(cfg: CfgNode) -> None:
    whole = content(first(build_train_loader(cfg, seed=2), 9))
    cfg.DATALOADER.NUM_WORKERS = 2
    late = build_train_loader(cfg, seed=9)
    start_stream_at(late, 4, seed=2)
    assert content(first(late, 5)) == whole[4:]


def test_weights_and_their_table(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.DATASETS.TRAIN, cfg.DATASETS.WEIGHTS = ("disk_captions", "disk_classes"), [3.0, 1.0]
    with caplog.at_level(logging.INFO):
        stream = build_train_loader(cfg, seed=0).batch_sampler
    assert re.search(r"disk_classes +\| +4 \| +1 \| 25.00 %", caplog.text)
    drawn = Counter(index < 10 for batch in itertools.islice(stream, 400) for _, index in batch)
    assert drawn[True] / 800 == pytest.approx(0.75, abs=0.02)
    cfg.DATASETS.WEIGHTS = [1.0]
    with pytest.raises(ValueError, match="1 numbers for the 2 sets"):
        build_train_loader(cfg, seed=0)


def test_broken_rows_stop_a_strict_training(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.DATASETS.TRAIN = ("disk_classes",)
    build_train_loader(cfg, seed=0)
    assert "classes.jsonl:6" in caplog.text
    cfg.DATASETS.STRICT_ON = True
    with pytest.raises(ValueError, match="STRICT_ON.*classes.jsonl:6"):
        build_train_loader(cfg, seed=0)


def test_pictures_without_objects_are_left_out_if_asked_for(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ("disk_classes",)
    assert len(build_train_loader(cfg, seed=0).dataset) == 4
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(build_train_loader(cfg, seed=0).dataset) == 5


def test_rare_classes_on_disk_are_repeated(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ("disk_captions", "disk_classes")
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 1.0
    weights = build_train_loader(cfg, seed=0).batch_sampler._weights
    rare = (1 / 0.75) ** 0.5  # "dog" is in three of four pictures
    torch.testing.assert_close(weights.float(), torch.tensor([1.0] * 11 + [rare] * 3))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("disk_captions", "3 phrases"), ("disk_classes", "2 names"), ("disk_categories", "2 names")],
)
def test_label_rows_are_checked_without_reading_all(
    cfg: CfgNode, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(LazyRecords, "_read", _counting(LazyRecords._read, read))
    cfg.DATASETS.TRAIN = (name,)
    build_train_loader(cfg, seed=0)
    assert len(read) <= 2
    cfg.MODEL.DENOISING.NUM_LABELS = 1
    with pytest.raises(ValueError, match=f"can list {sentence}, but MODEL.DENOISING.NUM_LABELS is 1"):
        build_train_loader(cfg, seed=0)


def test_rows_on_disk_are_refused_for_evaluation_at_the_start(
    cfg: CfgNode, grounding_row: Rows, write_tar: Write
) -> None:
    """A file that --dataset names is known to stay on disk once it is read."""
    path = write_tar("shard.tar", [grounding_row(number) for number in range(2)])
    cfg.DATASETS.EXTRA, cfg.DATASETS.TEST = [f"of_the_command_line={path}:."], ("of_the_command_line",)
    try:
        with pytest.raises(ValueError, match="'of_the_command_line' of DATASETS.TEST cannot be evaluated on.*scored"):
            check_test_sets(cfg)
    finally:
        DatasetCatalog.remove("of_the_command_line")
        MetadataCatalog.remove("of_the_command_line")
