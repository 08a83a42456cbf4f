"""The command: what it refuses, how it goes on, and what survives kills of any kind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.label_images import main
from grounding_dino.labelling import local_workers
from grounding_dino.labelling.journal import OutputLock
from grounding_dino.labelling.run import Event

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

ROOT = Path(__file__).resolve().parents[2]
OPTS = ["--opts", "INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"]
FORMATS = ["--format", "coco", "odvg", "yolo", "voc"]
NAMES = ["--categories", "red circle", "blue star", "--confidence-threshold", "0.05"]


def write_pictures(folder: Path, count: int, broken: int = 0) -> Path:
    """Pictures of four shapes in two folders; the last ones are broken in several ways."""
    for number in range(count):
        file = folder / ("odd" if number % 2 else "even") / f"{number // 2:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = [(40, 60), (60, 40), (40, 60), (50, 50)][number % 4]
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
        if number >= count - broken:
            content = file.read_bytes()
            file.write_bytes([b"", content[:300], b"GIF89a", b"text"][number % 4])
    return folder


def command(pictures: Path, out: Path, *more: str) -> list[str]:
    return ["--input", str(pictures), "--output", str(out), *NAMES, *more, *OPTS]


def here(pictures: Path, out: Path, *more: str) -> int:
    """Run in this process."""
    return main(command(pictures, out, "--workers", "0", *more))


def label_files(out: Path) -> dict[str, bytes]:
    """Name and content of all that a run wrote for its user."""
    files = (file for file in sorted(out.rglob("*")) if file.is_file() and "journal" not in file.parts)
    # the description names its own folder
    return {str(file.relative_to(out)): file.read_bytes() for file in files if file.name != "data.yaml"}


def test_all_formats_of_a_folder_with_broken_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = write_pictures(tmp_path / "in", 8, broken=3)
    assert here(pictures, tmp_path / "out", *FORMATS) == 1
    printed = capsys.readouterr()
    assert "5 of 8 pictures are labelled" in printed.out and "3 pictures failed" in printed.err
    coco = COCO(tmp_path / "out" / "coco.json")
    assert len(coco.imgs) == 5 and [c["name"] for c in coco.cats.values()] == ["red circle", "blue star"]
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in failed] == ["even/003.png", "odd/002.png", "odd/003.png"]
    assert all(line["reason"] for line in failed)
    before = label_files(tmp_path / "out")
    assert here(pictures, tmp_path / "out", *FORMATS) == 1  # there is nothing left to do
    assert "8 of 8 pictures are done" in capsys.readouterr().out
    assert label_files(tmp_path / "out") == before


def test_an_error_of_the_list_moves_no_label_to_another_picture(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in", 6)
    Path(os.fsdecode(os.fsencode(pictures) + b"/a\xff.png")).touch()  # comes first
    assert here(pictures, tmp_path / "out", *FORMATS) == 1
    (failed,) = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert failed["file_name"] == "a\\udcff.png" and "no valid UTF-8" in failed["reason"]
    found = COCO(tmp_path / "out" / "coco.json").imgs.values()
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in found}
    assert sizes == {str(f.relative_to(pictures)): Image.open(f).size for f in sorted(pictures.glob("*/*.png"))}


def test_another_format_later_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = write_pictures(tmp_path / "in", 3)
    assert here(pictures, tmp_path / "out") == 0
    monkeypatch.setattr(local_workers.ThisProcess, "hire", lambda *_: pytest.fail("a model was loaded"))
    assert here(pictures, tmp_path / "out", "--format", "voc") == 0
    assert len(list((tmp_path / "out" / "voc" / "Annotations").rglob("*.xml"))) == 3
    (tmp_path / "out" / "coco.json").unlink()
    assert here(pictures, tmp_path / "out") == 0 and (tmp_path / "out" / "coco.json").exists()


def test_a_changed_command_is_refused_and_restart_begins_anew(tmp_path: Path, capsys) -> None:
    pictures, out = write_pictures(tmp_path / "in", 2), tmp_path / "out"
    assert here(pictures, out) == 0
    before = label_files(out)
    for change in (["--nms", "0.5"], ["--text-threshold", "0.3"], ["--not-wanted", "bar"], ["--tile-size", "30"]):
        assert here(pictures, out, *change) == 2
        printed = capsys.readouterr().err
        assert "a run with other settings" in printed and change[0] in printed and "--restart" in printed
    changed = [*command(pictures, out, "--workers", "0"), "TEST.CATEGORIES_PER_PROMPT", "1"]
    assert main(changed) == 2 and "--opts has changed" in capsys.readouterr().err
    assert label_files(out) == before
    assert here(pictures, out, "--nms", "0.5", "--restart") == 0
    assert here(pictures, out, "--nms", "0.5") == 0


def test_pictures_that_came_later_are_said_and_left_out(tmp_path: Path, capsys) -> None:
    pictures, out = write_pictures(tmp_path / "in", 2), tmp_path / "out"
    assert here(pictures, out) == 0
    write_pictures(pictures, 4)
    assert here(pictures, out) == 0
    assert "have changed since the run began" in capsys.readouterr().out
    assert len(COCO(out / "coco.json").imgs) == 2


def test_failed_pictures_can_be_tried_again(tmp_path: Path) -> None:
    pictures, out = write_pictures(tmp_path / "in", 4, broken=1), tmp_path / "out"
    assert here(pictures, out) == 1
    write_pictures(pictures, 4)
    assert here(pictures, out) == 1 and len(COCO(out / "coco.json").imgs) == 3
    assert here(pictures, out, "--retry-failed") == 0 and len(COCO(out / "coco.json").imgs) == 4
    assert (out / "failed.jsonl").read_text() == ""


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, capsys) -> None:
    pictures, out = write_pictures(tmp_path / "in", 1), tmp_path / "out"
    (out / "journal").mkdir(parents=True)
    lock = OutputLock(out / "journal" / "lock")
    assert here(pictures, out) == 2 and "another run is writing" in capsys.readouterr().err
    lock.release()
    assert here(pictures, out) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--input", "nowhere"], "there is nothing at --input"),
        (["--categories-file", "nowhere"], "no file of categories"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--output", "/proc/out"], "cannot be written to"),
        (["--config-file", "nothing_known"], "nothing_known"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path: Path, capsys, change: list[str], said: str) -> None:
    pictures = write_pictures(tmp_path / "in", 1)
    arguments = ["--input", str(pictures), "--output", str(tmp_path / "out"), "--workers", "0", *change]
    arguments += [] if "--categories-file" in change else ["--categories", "cat"]
    assert main([*arguments, *OPTS]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "say what to look for"),
        (["--categories", "cat", "--config-file", "r50_4scale_12ep"], "fixed classes"),
        (["--per-picture", "caption", "--not-wanted", "dog"], "--not-wanted goes with categories"),
        (["--categories", "cat", "--tile-overlap", "1"], "--tile-overlap 1 leaves no step"),
        (["--categories", "cat", "--nms", "2"], "does not lie in [0, 1]"),
        (["--categories", "cat", "--format", "pascal"], "invalid choice"),
    ],
)
def test_wrong_usage(tmp_path: Path, capsys, wrong: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--input", str(tmp_path), "--output", str(tmp_path / "out"), *wrong])
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_categories_from_a_file_and_for_single_pictures(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in", 4)
    (tmp_path / "names.txt").write_text("red circle\n\nblue star\n")
    rows = [{"file_name": "in/even/000.png", "categories": ["green bar"]}, {"file_name": "in/odd/000.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--categories-file", str(tmp_path / "names.txt"), "--workers", "0", "--per-picture", "categories"]
    out = str(tmp_path / "out")
    chosen = ["--confidence-threshold", "0", *OPTS]
    assert main(["--input", str(tmp_path / "rows.jsonl"), "--output", out, *arguments, *chosen]) == 0
    coco = COCO(Path(out) / "coco.json")
    names = {c["id"]: c["name"] for c in coco.cats.values()}
    by_picture = [{names[a["category_id"]] for a in coco.loadAnns(coco.getAnnIds(imgIds=[i]))} for i in (1, 2)]
    assert by_picture[0] == {"green bar"} and by_picture[1] == {"red circle", "blue star"}
    assert [coco.imgs[i]["file_name"] for i in (1, 2)] == ["in/even/000.png", "in/odd/000.png"]
    assert pictures.exists()


def test_a_full_disk_is_said_and_what_was_done_stays(tmp_path: Path, capsys, monkeypatch) -> None:
    pictures, out = write_pictures(tmp_path / "in", 12), tmp_path / "out"
    write, written = os.fsync, []

    def full(handle: int) -> None:
        write(handle)
        written.extend([handle] if "records-" in os.readlink(f"/proc/self/fd/{handle}") else [])
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert here(pictures, out) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert here(pictures, out) == 0
    assert "of 12 pictures are done" in capsys.readouterr().out
    assert here(pictures, tmp_path / "other") == 0
    assert label_files(out) == label_files(tmp_path / "other")


def test_ctrl_c_keeps_what_was_done(tmp_path: Path, capsys, monkeypatch) -> None:
    pictures, out = write_pictures(tmp_path / "in", 12), tmp_path / "out"
    wait, calls = local_workers.ThisProcess.wait, []

    def interrupted(self: Any) -> list[tuple[Any, Event]]:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return wait(self)

    monkeypatch.setattr(local_workers.ThisProcess, "wait", interrupted)
    assert here(pictures, out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert here(pictures, out) == 0
    assert "4 of 12 pictures are done" in capsys.readouterr().out


# Real processes, killed


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """The script in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(ROOT / "tools" / "label_images.py"), *arguments]
    return subprocess.Popen(
        script, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output.decode()


def lines_of_journal(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in (out / "journal").glob("records-*.jsonl"))


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """What `condition` says once it is true, or at the end of the process."""
    while not (found := condition()) and process.poll() is None:
        time.sleep(0.01)
    return found


def descendants(pid: int) -> dict[int, str]:
    """Process id -> command line of the children of a process, and theirs."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    found, waiting = {}, [pid]
    while waiting:
        parent = waiting.pop()
        for child in [number for number, its in parents.items() if its == parent]:
            found[child] = commands[child]
            waiting.append(child)
    return found


def kill_one(process: subprocess.Popen[bytes], out: Path, name: str, after: int) -> int:
    """Kill a worker, whose command line has `name`, once there are some records; its process id."""
    wait_for(lambda: lines_of_journal(out) >= after, process)
    workers = [pid for pid, line in descendants(process.pid).items() if name in line]
    assert workers, descendants(process.pid)
    victim = random.Random(0).choice(sorted(workers))
    os.kill(victim, signal.SIGKILL)
    return victim


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder of pictures, some broken, and the files of a run over them that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    pictures = write_pictures(folder / "in", 96, broken=6)
    assert here(pictures, folder / "out", *FORMATS) == 1
    return pictures, label_files(folder / "out")


@pytest.mark.slow
def test_killed_twice_every_picture_is_there_once(expected, tmp_path: Path) -> None:
    pictures, files = expected
    arguments = command(pictures, tmp_path / "out", "--workers", "2", *FORMATS)
    for target in (16, 48):
        process = start(*arguments)
        wait_for(lambda target=target: lines_of_journal(tmp_path / "out") >= target, process)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, output = finish(start(*arguments))
    assert code == 1, output
    assert label_files(tmp_path / "out") == files


@pytest.mark.slow
def test_a_killed_worker_is_replaced(expected, tmp_path: Path) -> None:
    pictures, files = expected
    process = start(*command(pictures, tmp_path / "out", "--workers", "2", *FORMATS))
    killer = threading.Thread(target=kill_one, args=(process, tmp_path / "out", "spawn_main", 16))
    killer.start()
    code, output = finish(process)
    killer.join()
    assert code == 1 and "ended by the signal 9 (SIGKILL); another takes its place" in output, output
    assert label_files(tmp_path / "out") == files


@pytest.mark.slow
def test_a_worker_of_ray_that_is_killed_is_replaced(expected, tmp_path: Path) -> None:
    pictures, files = expected
    arguments = command(pictures, tmp_path / "out", "--engine", "ray", "--workers", "2", *FORMATS)
    process = start(*arguments)
    killer = threading.Thread(target=kill_one, args=(process, tmp_path / "out", "ray::_Actor", 16))
    killer.start()
    code, output = finish(process)
    killer.join()
    assert code == 1 and "another takes its place" in output, output
    assert label_files(tmp_path / "out") == files
