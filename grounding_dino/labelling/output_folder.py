"""The folder of a run: what it was begun with, its list, its journal, and which label files are written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino import __version__
from grounding_dino.labelling.inputs import PictureInputs
from grounding_dino.labelling.journal import Journal, OutputLock
from grounding_dino.labelling.plan import Plan, digest_of, write_plan
from grounding_dino.whole_file import whole_file

_FORMAT, _VERSION = "grounding_dino.labelling", 1
_STATE = "run.json"
JOURNAL_FOLDER = "journal"

# Where label files stand in the folder; "failures" are always written.
PLACES = {"coco": "coco.json", "odvg": "odvg.jsonl", "yolo": "yolo", "voc": "voc", "failures": "failed.jsonl"}


class OutputFolder:
    """A run's state on disk, locked against other runs.

    It is begun, or gone on with where it was. `run.json` is written last at the beginning, and taken away first
    when a run is begun anew, so that a run is there whole or not at all.

    Attributes:
        root: the folder that names of pictures are relative to.
        is_new: nothing was done before.
        has_changed: other pictures are at the inputs than when the run began; it goes on with those of then.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], restart: bool = False) -> None:
        """
        Args:
            settings: of :func:`described_settings`.
            restart: forget what was done.

        Raises:
            ValueError: it was begun with other settings, or holds something else.
            OSError: it cannot be written, or another run is at it.
        """
        self.folder, self._settings = folder, settings
        self._journal_folder = folder / JOURNAL_FOLDER
        try:
            self._journal_folder.mkdir(parents=True, exist_ok=True)
            self._lock = OutputLock(self._journal_folder / "lock")
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(f"the output folder {str(folder)!r} cannot be written to: {error}") from error
        try:
            self._state = None if restart else self._read_state()
        except BaseException:
            self.close()
            raise
        self.is_new = self._state is None
        self.has_changed = False

    def begin(self, inputs: PictureInputs, retry_failed: bool = False) -> None:
        """Make the list of pictures, or take the one that is there, and open the journal.

        Raises:
            ValueError: there is no picture.
            OSError: the folder cannot be written or read.
        """
        if self._state is None:
            self._forget()
            plan = write_plan(self._journal_folder, inputs)
            facts = {"total": plan.total, "repeated": plan.repeated, "digest": plan.digest, "root": inputs.root}
            head = {"format": _FORMAT, "version": _VERSION, "release": __version__, "settings": self._settings}
            self._state = {**head, **facts, "classes": None, "written": {}}
            self._write_state()
        else:
            self.has_changed = digest_of(inputs) != self._state["digest"]
        self.root: str = self._state["root"]
        self.plan = Plan(self._journal_folder, *(self._state[key] for key in ("total", "repeated", "digest")))
        self.journal = Journal(self._journal_folder, self.plan.total, retry_failed)
        self.journal.add([{"number": e["number"], "error": e["error"]} for e in self.plan if "error" in e])

    @property
    def classes(self) -> list[str] | None:
        """Of a model of fixed classes, once a worker has told them."""
        assert self._state is not None
        classes: list[str] | None = self._state["classes"]
        return classes

    def set_classes(self, classes: Sequence[str] | None) -> None:
        """Keep the classes of the model."""
        if self._state is not None and classes is not None and self.classes is None:
            self._state["classes"] = list(classes)
            self._write_state()

    def missing(self, formats: dict[str, str]) -> list[str]:
        """Those of `formats`, each with how it is written, that are not there so, with the journal's records."""
        assert self._state is not None
        written = {name: how for name, how in self._state["written"].items() if (self.folder / PLACES[name]).exists()}
        return [name for name, how in formats.items() if written.get(name) != self._as_written(how)]

    def begin_writing(self, formats: Sequence[str]) -> None:
        """Keep that label files are not whole from now on."""
        assert self._state is not None
        self._state["written"] = {name: how for name, how in self._state["written"].items() if name not in formats}
        self._write_state()

    def set_written(self, formats: dict[str, str]) -> None:
        """Keep that label files are written."""
        assert self._state is not None
        self._state["written"].update({name: self._as_written(how) for name, how in formats.items()})
        self._write_state()

    def close(self) -> None:
        """Let other runs in."""
        self._lock.release()

    def _as_written(self, how: str) -> str:
        return f"{how}, {self.journal.labelled} labelled, {self.journal.failed} failed"

    def _forget(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._journal_folder / _STATE)
        for file in self._journal_folder.glob("records-*.jsonl"):
            os.remove(file)

    def _write_state(self) -> None:
        with whole_file(self._journal_folder / _STATE) as file:
            json.dump(self._state, file, indent=1)

    def _read_state(self) -> dict[str, Any] | None:
        """
        Raises:
            ValueError: it is about another run, or cannot be read.
        """
        file = self._journal_folder / _STATE
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if state["format"] != _FORMAT or state["version"] != _VERSION:
                raise ValueError(f"it is of the format {state['format']} {state['version']}")
            before = state["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} cannot be used ({error}), so nobody knows what was done in {str(self.folder)!r}; name another "
                "--output, or begin anew with --restart"
            ) from error
        different = [key for key, value in self._settings.items() if before.get(key) != _as_json(value)]
        if different:
            raise ValueError(
                f"the output folder {str(self.folder)!r} holds a run with other settings: "
                f"{_differences(before, self._settings, different)}. Go on with the "
                "same command, name another --output, or begin anew with --restart"
            )
        return state


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _differences(before: dict[str, Any], now: dict[str, Any], keys: Sequence[str]) -> str:
    """What has changed, in short."""
    said = []
    for key in keys:
        old, new = (json.dumps(value, ensure_ascii=False) for value in (before.get(key), now[key]))
        is_short = len(old) + len(new) < 200
        said.append(f"{key} was {old} and is {new}" if is_short else f"{key} has changed")
    return "; ".join(said)
