"""Saving is whole or nothing; loading takes every origin; resuming takes the state of the run."""

import os
import signal
import subprocess
import sys
import textwrap

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint import saving
from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.saving import save_checkpoint, write_atomically

import pytest
import torch


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def optimizer_of(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_save_and_resume(tmp_path, make_model):
    model = make_model()
    optimizer = optimizer_of(model)
    GroundingCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000009", iteration=9)
    other = make_model()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    checkpointer = GroundingCheckpointer(other, str(tmp_path), optimizer=other_optimizer, ignore=["."])
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 9}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    states = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(states[0][i]["exp_avg"], states[1][i]["exp_avg"]) for i in states[0])


def test_weights_alone_without_resuming(tmp_path, make_model, model):
    GroundingCheckpointer(model, str(tmp_path), optimizer=optimizer_of(model)).save("model_final")
    other = make_model()
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    GroundingCheckpointer(other, str(tmp_path), optimizer=optimizer).resume_or_load(
        str(tmp_path / "model_final.pth"), resume=False
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert optimizer.param_groups[0]["lr"] == 0.5 and not optimizer.state


def test_loads_other_origins(tmp_path, make_model, model):
    save_checkpoint(str(tmp_path / "authors.pth"), model.state_dict(), to="official")
    other = make_model()
    checkpointer = GroundingCheckpointer(other)
    checkpointer.load(str(tmp_path / "authors.pth"))
    assert checkpointer.report.origin == "official"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_no_path_changes_nothing(make_model):
    assert GroundingCheckpointer(make_model()).load("") == {}


def test_an_asked_for_state_that_is_not_there(tmp_path, model):
    GroundingCheckpointer(model, str(tmp_path)).save("a")
    checkpointer = GroundingCheckpointer(model, optimizer=optimizer_of(model))
    with pytest.raises(CheckpointError, match="no state of 'optimizer'"):
        checkpointer.load(str(tmp_path / "a.pth"), checkpointables=["optimizer"])


def test_the_newest_are_kept(tmp_path, model):
    checkpointer = GroundingCheckpointer(model, str(tmp_path), keep=2)
    for name in ("model_0000001", "model_best", "model_0000002", "model_0000003", "model_final"):
        checkpointer.save(name)
    kept = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert kept == ["model_0000002.pth", "model_0000003.pth", "model_best.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_only_files_of_the_same_run_are_removed(tmp_path, model):
    """A run that starts anew in a used folder begins with lower numbers than those that lie there."""
    before = GroundingCheckpointer(model, str(tmp_path), keep=2)
    for number in (1999, 2999):
        before.save(f"model_{number:07d}")
    fresh = GroundingCheckpointer(model, str(tmp_path), keep=2)
    for number in (99, 199, 299):
        fresh.save(f"model_{number:07d}")
    assert numbers_in(tmp_path) == [199, 299, 1999, 2999]
    resumed = GroundingCheckpointer(model, str(tmp_path), keep=2)
    resumed.resume_or_load("", resume=True)
    for number in (399, 1999):  # the second writes over a file of the other run, which makes it this run's
        resumed.save(f"model_{number:07d}")
    assert numbers_in(tmp_path) == [399, 1999, 2999]


def test_a_run_that_goes_on_from_its_final_file_knows_its_others(tmp_path, model):
    checkpointer = GroundingCheckpointer(model, str(tmp_path), keep=1)
    checkpointer.save("model_0000009")
    checkpointer.save("model_final")
    resumed = GroundingCheckpointer(model, str(tmp_path), keep=1)
    assert resumed.resume_or_load("", resume=True) == {}
    resumed.save("model_0000019")
    assert numbers_in(tmp_path) == [19]


def numbers_in(folder):
    return sorted(int(path.stem[-7:]) for path in folder.glob("model_0*.pth"))


def test_nothing_is_saved_where_saving_is_off(tmp_path, model):
    GroundingCheckpointer(model, str(tmp_path), save_to_disk=False).save("a")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, make_model, model):
    checkpointer = GroundingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")

    def full(content, file):
        file.write(b"PK\x03\x04 some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save("model_0000002")
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save("model_0000001")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    other = make_model()
    GroundingCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_a_kill_during_saving_leaves_nothing_that_looks_whole(tmp_path):
    write_atomically(str(tmp_path / "model.pth"), lambda file: file.write(b"the old one"))
    program = f"""
        import os, signal, time
        import grounding_dino
        from grounding_dino.checkpoint.saving import write_atomically

        def write(file):
            file.write(b"half of the new one")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        write_atomically({str(tmp_path / "model.pth")!r}, write)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / "model.pth").read_bytes() == b"the old one"
    (abandoned,) = [path for path in tmp_path.iterdir() if path.name != "model.pth"]
    assert abandoned.name.startswith(".") and abandoned.suffix != ".pth"
    write_atomically(str(tmp_path / "model.pth"), lambda file: file.write(b"the new one"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert (tmp_path / "model.pth").read_bytes() == b"the new one"


def test_an_interrupt_removes_the_temporary_file(tmp_path):
    def interrupted(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(str(tmp_path / "model.pth"), interrupted)
    assert not list(tmp_path.iterdir())


def test_a_truncated_checkpoint_is_refused_in_words(tmp_path, make_model, model):
    GroundingCheckpointer(model, str(tmp_path)).save("model_0000001")
    path = tmp_path / "model_0000001.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="model_0000001.pth is cut off"):
        GroundingCheckpointer(make_model(), str(tmp_path)).resume_or_load("", resume=True)
