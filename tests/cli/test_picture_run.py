"""Runs over folders: workers, batches, order, failures, and how they end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

from grounding_dino.cli import picture_workers
from grounding_dino.cli.demo import plan_outputs
from grounding_dino.cli.picture_run import PictureRun, number_of_workers
from grounding_dino.cli.picture_work import Job, PictureWork
from grounding_dino.cli.picture_workers import WorkerProcesses
from grounding_dino.model_zoo import load_cfg
from grounding_dino.picture_batches import MOST_PADDING, PictureBatches
from grounding_dino.pictures import PicturePreparation
from grounding_dino.predictor import GroundingPredictor

import numpy as np
import pytest
import torch
from PIL import Image

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_DECODER.NUM_LAYERS", 1,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1,
    "MODEL.TEXT_ENCODER.NUM_LAYERS", 1,
    "MODEL.QUERY_SELECTION.NUM_QUERIES", 3,
    "INPUT.MIN_SIZE_TEST", 32,
    "INPUT.MAX_SIZE_TEST", 64,
]  # fmt: skip
OPTIONS = {"categories": ["red circle", "blue star"], "box_threshold": 0.0}
SIZES = [(40, 60), (60, 40), (40, 60), (50, 50), (40, 60), (60, 40), (41, 60), (40, 60), (60, 40), (50, 50)]

needs_fork = pytest.mark.skipif(not picture_workers.can_fork(), reason="workers are forked, on Linux")


@pytest.fixture(scope="module")
def predictor() -> GroundingPredictor:
    torch.manual_seed(0)
    return GroundingPredictor(load_cfg("shapes_tiny", TINY))


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Ten files of four shapes, the fourth cut short."""
    paths = []
    for number, size in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(noise).save(paths[-1])
    Path(paths[3]).write_bytes(Path(paths[3]).read_bytes()[:500])
    return paths


def outcome(predictor: GroundingPredictor, paths: list[str], out: Path, **settings: Any) -> tuple[Any, Any, Any]:
    """A run's records and failures, and the bytes of its drawings."""
    report = PictureRun(predictor, plan_outputs(paths, str(out)), OPTIONS, masks=True, **settings)()
    return report.records, report.failures, {file.name: file.read_bytes() for file in sorted(out.iterdir())}


# Results


@needs_fork
@pytest.mark.parametrize("batch_size", [1, 3])
def test_workers_change_nothing(predictor, pictures, tmp_path, capsys, batch_size):
    alone = outcome(predictor, pictures, tmp_path / "alone", batch_size=batch_size, workers=0)
    printed = capsys.readouterr().out
    assert outcome(predictor, pictures, tmp_path / "two", batch_size=batch_size, workers=2) == alone
    assert capsys.readouterr().out == printed
    records, failures, drawings = alone
    assert [record["file_name"] for record in records] == pictures
    assert [path for path, _ in failures] == [pictures[3]] and "error" in records[3]
    assert list(drawings) == [f"{number}.png" for number in range(10) if number != 3]


def test_batches_change_no_result(predictor, pictures, tmp_path):
    single, *others = (
        outcome(predictor, pictures, tmp_path / str(size), batch_size=size, workers=0)[0] for size in (1, 2, 4, 16)
    )
    for records in others:
        for one, other in zip(single, records, strict=True):
            assert one["file_name"] == other["file_name"] and one.get("error") == other.get("error")
            expected = [(d["label"], d["score"]) for d in one.get("detections", ())]
            found = [(d["label"], d["score"]) for d in other.get("detections", ())]
            assert [label for label, _ in found] == [label for label, _ in expected]
            assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-3)


def test_what_does_not_fit_the_memory_is_read_again(predictor, pictures, tmp_path, monkeypatch):
    expected = outcome(predictor, pictures, tmp_path / "kept", batch_size=4, workers=0)
    monkeypatch.setattr(PictureWork.__init__, "__defaults__", (False, 10_000, *PictureWork.__init__.__defaults__[2:]))
    assert outcome(predictor, pictures, tmp_path / "read", batch_size=4, workers=0) == expected


@needs_fork
def test_inputs_larger_than_their_place_go_through_the_pipe(pictures, monkeypatch):
    monkeypatch.setattr(picture_workers, "_LARGEST_SLOT", 100)
    prepare = PicturePreparation(32, 64)
    team = WorkerProcesses(PictureWork(prepare), count=1, slots=2)
    team.submit("read", Job(0, pictures[0], None))
    image = team.answer().value["image"]
    team.close()
    assert torch.equal(image, prepare(np.asarray(Image.open(pictures[0])))["image"])


# Memory


@pytest.mark.slow
@needs_fork
def test_few_pictures_are_under_way_at_a_time(predictor, pictures, tmp_path, monkeypatch):
    under_way, most = set(), 0
    submit = WorkerProcesses.submit

    def count(team, call, job, *arguments):
        nonlocal most
        (under_way.add if call == "read" else under_way.discard)(job.number)
        most = max(most, len(under_way))
        submit(team, call, job, *arguments)

    monkeypatch.setattr(WorkerProcesses, "submit", count)
    many = [(path, None) for path in pictures * 5]
    report = PictureRun(predictor, many, OPTIONS, workers=1)()
    assert len(report.records) == 50 and 1 < most <= 5


@needs_fork
@pytest.mark.parametrize(
    "device, threads, wanted", [("cpu", 4, 0), ("cpu", 3, 1), ("cpu", 8, 0), ("cuda", 4, 3), ("cuda", 1, 3)]
)
def test_workers_take_the_cores_that_are_free(
    device: str, threads: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert number_of_workers(100, torch.device(device)) == wanted
    assert number_of_workers(2, torch.device(device)) == 0


# Batches


def batches_of(sizes: list[tuple[int, int]], batch_size: int, padding: bool = True) -> list[list[int]]:
    former = PictureBatches(batch_size, padding)
    formed = [batch for number, size in enumerate(sizes) for batch in former.add(number, size)]
    return formed + former.rest()


def test_equal_sizes_go_together():
    sizes = [(800, 1200), (1200, 800)] * 6
    assert batches_of(sizes, 3) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert batches_of(sizes, 1) == [[number] for number in range(12)]


def test_close_ratios_fill_a_batch_and_distant_ones_do_not():
    sizes = [(800, 1200), (800, 800), (800, 1190), (800, 1210)]
    assert batches_of(sizes, 3) == [[0, 2, 3], [1]]
    assert batches_of(sizes, 3, padding=False) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_picture_is_in_one_batch_and_none_waits_for_long(batch_size):
    generator = random.Random(0)
    sizes = [(800, generator.choice([800, 1000, 1010, 1200, 1333])) for _ in range(300)]
    former = PictureBatches(batch_size)
    formed: list[list[int]] = []
    for number, size in enumerate(sizes):
        for batch in former.add(number, size):
            assert number - min(batch) <= 4 * former.lookahead
            formed.append(batch)
    formed += former.rest()
    assert sorted(number for batch in formed for number in batch) == list(range(300))
    for batch in formed:
        assert len(batch) <= batch_size
        widths = [sizes[number][1] for number in batch]
        assert max(widths) * len(widths) <= MOST_PADDING * sum(widths)


# Failures


@needs_fork
@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_the_model_fails_on_is_reported(predictor, pictures, monkeypatch, batch_size):
    answers = predictor._answers

    def fail(inputs: list[dict[str, Any]]) -> Any:
        if any(item["height"] == 41 for item in inputs):
            raise RuntimeError("out of memory")
        return answers(inputs)

    monkeypatch.setattr(predictor, "_answers", fail)
    report = PictureRun(predictor, plan_outputs(pictures, None), OPTIONS, batch_size, workers=1)()
    assert [path for path, _ in report.failures] == [pictures[3], pictures[6]]
    assert report.failures[1][1] == "out of memory"


@needs_fork
def test_a_killed_worker_is_a_sentence(predictor, pictures, monkeypatch):
    detect = predictor.detect

    def kill(*arguments: Any, **options: Any) -> Any:
        os.kill(run._team._workers[0]._process.pid, signal.SIGKILL)
        return detect(*arguments, **options)

    run = PictureRun(predictor, plan_outputs(pictures, None), OPTIONS, workers=1)
    monkeypatch.setattr(predictor, "detect", kill)
    with pytest.raises(ChildProcessError, match=r"ended by the signal 9 \(SIGKILL\) at .*\.png.*--workers 0"):
        run()


def test_the_memory_of_a_batch_that_fails_is_free_when_its_pictures_are_tried(predictor, pictures, monkeypatch):
    answers, held = predictor._answers, []

    class Activation:
        """Something large of a forward pass."""

    def fail(inputs: list[dict[str, Any]]) -> Any:
        if len(inputs) > 1:
            activation = Activation()
            held.append(weakref.ref(activation))
            raise RuntimeError("out of memory")
        assert all(reference() is None for reference in held)
        return answers(inputs)

    monkeypatch.setattr(predictor, "_answers", fail)
    report = PictureRun(predictor, plan_outputs(pictures, None), OPTIONS, 3, workers=0)()
    assert held and [path for path, _ in report.failures] == [pictures[3]]


@needs_fork
def test_what_cannot_be_sent_is_a_failure_of_its_picture(pictures):
    team = WorkerProcesses(PictureWork(PicturePreparation(32, 64)), count=1, slots=2)
    team.submit("read", Job(0, pictures[0], None))
    team.answer()
    team.submit("finish", Job(0, pictures[0], None), lambda: "no pickle", (40, 60))
    answer = team.answer()
    assert answer.job.number == 0 and "pickle" in answer.error
    team.submit("read", Job(1, pictures[1], None))
    assert not team.answer().error
    team.close()


# The end


@needs_fork
def test_workers_end_when_they_are_told(pictures):
    team = WorkerProcesses(PictureWork(PicturePreparation(32, 64)), count=3, slots=3)
    team.submit("read", Job(0, pictures[0], None))
    team.answer()
    team.close()
    assert [worker._process.exitcode for worker in team._workers] == [0, 0, 0]  # not killed for waiting too long


class CudaRuntime:
    """Stands for torch.cuda.cudart(); an address may be pinned once at a time."""

    class cudaError:
        success = 0

    pinned: set[int] = set()

    @classmethod
    def cudaHostRegister(cls, address: int, size: int, flags: int) -> int:
        known = address in cls.pinned
        cls.pinned.add(address)
        return 712 if known else 0

    @classmethod
    def cudaHostUnregister(cls, address: int) -> int:
        cls.pinned.remove(address)
        return 0


@needs_fork
def test_pinned_memory_is_given_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: CudaRuntime)
    team = WorkerProcesses(PictureWork(PicturePreparation(32, 64)), count=2, slots=2, pinned=True)
    assert len(CudaRuntime.pinned) == 2
    team.close()
    team.close()
    assert not CudaRuntime.pinned


KILLED = """
import os, signal
from grounding_dino.cli.picture_work import PictureWork
from grounding_dino.cli.picture_workers import WorkerProcesses
from grounding_dino.pictures import PicturePreparation
WorkerProcesses(PictureWork(PicturePreparation(32, 64)), count=2, slots=2)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_fork
@pytest.mark.slow
def test_workers_end_with_a_main_process_that_is_killed():
    process = subprocess.Popen([sys.executable, "-c", KILLED], start_new_session=True)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert nobody_is_left(process.pid)


def nobody_is_left(group: int) -> bool:
    """Whether all processes of a group end within some seconds."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
import grounding_dino.cli.demo as demo
from grounding_dino.predictor import GroundingPredictor
detect = GroundingPredictor.detect
def slow(*arguments, **options):
    time.sleep(0.3)
    return detect(*arguments, **options)
GroundingPredictor.detect = slow
sys.exit(demo.main(sys.argv[1:]))
"""


@needs_fork
@pytest.mark.slow
def test_control_c_keeps_what_was_finished(pictures, tmp_path):
    file = tmp_path / "out.json"
    many = [picture for picture in pictures if picture != pictures[3]]
    for copy in range(4):
        for picture in many[:9]:
            target = tmp_path / f"copy{copy}_{Path(picture).name}"
            target.write_bytes(Path(picture).read_bytes())
    arguments = ["--input", str(tmp_path / "copy*.png"), "--json", str(file), "--output", str(tmp_path / "out")]
    arguments += ["--categories", "star", "--workers", "2", "--opts", "MODEL.DEVICE", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], **pipes)
    assert process.stdout is not None
    process.stdout.readline()  # the first picture is done
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept" in error and "Traceback" not in error
    records = json.loads(file.read_text())
    assert 1 <= len(records) < 36 and all("detections" in record for record in records)
    assert nobody_is_left(process.pid)
