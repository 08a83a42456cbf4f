"""The checkpointer of training and evaluation: reads every origin, writes whole files or none."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from typing import Any

from grounding_dino.checkpoint.download import local_path
from grounding_dino.checkpoint.files import CheckpointError, read_checkpoint_file
from grounding_dino.checkpoint.loading import LoadReport, load_checkpoint_into
from grounding_dino.checkpoint.origins import OURS, LoadedCheckpoint, load_checkpoint
from grounding_dino.checkpoint.saving import save_torch, write_atomically
from grounding_dino.checkpoint.sharded import has_split_parameters, whole

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"model_\d+\.pth$")  # what PeriodicCheckpointer writes; not model_final or model_best
_PERIODIC_KEY = "periodic_checkpoints"  # under which a file lists those of its run, oldest first
_RUN_KEY = "run_id"  # under which a file names the run that has written it


class GroundingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with strict loading of any origin, atomic saving, and the newest `keep` files kept."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        ignore: Iterable[str] = (),
        warm_start: bool = False,
        keep: int = 0,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            ignore, warm_start: as :func:`load_weights`; they do not apply to resuming.
            keep: periodic checkpoints to keep, older ones of the same run are removed; 0 keeps all.
            checkpointables: objects with `state_dict` and `load_state_dict` that are saved beside the model.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.ignore = tuple(ignore)
        self.warm_start = warm_start
        self.keep = keep
        self.report: LoadReport | None = None  # of the last load
        self.run_id = ""  # the same for all restarts of a run, and written into its files; "" where nothing restarts it
        self._periodic: list[str] = []  # names of the files of this run, oldest first; other runs' are not ours

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model from `path` (any origin, URL; nothing if empty) and the checkpointables from a file of ours.

        Returns what else the file holds. Raises :class:`CheckpointError` as :func:`load_weights`.

        Where nothing but the model is loaded, the file is mapped into memory, not read: the model's parameters are
        copies, but tensors of what is returned have to be copied before the file is changed in place.
        """
        if not path:
            logger.info("no checkpoint named: the weights are the initial ones")
            return {}
        # an optimizer would keep tensors of the file itself as its state
        mmap = not (self.checkpointables if checkpointables is None else checkpointables)
        return self._fill(load_checkpoint(local_path(path), mmap), checkpointables, self.ignore, self.warm_start)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last checkpoint of `save_dir` if there is one and `resume`, else load from `path`.

        Raises:
            CheckpointError: as :meth:`load`; where the last checkpoint is missing or damaged, with the whole ones
                before it and how to go on from them.
        """
        if resume and self.has_checkpoint():
            last = self.get_checkpoint_file()
            try:
                checkpoint = load_checkpoint(local_path(last))
            except CheckpointError as error:
                raise CheckpointError(f"{error}. {self._what_is_left(last)}") from error
            rest = self._fill(checkpoint, None, (), False)
            self._periodic = [str(name) for name in rest.pop(_PERIODIC_KEY, [])]
            rest.pop(_RUN_KEY, None)
            return rest
        return self.load(path, checkpointables=[])

    def belongs_to_run(self) -> bool:
        """Whether the last checkpoint of `save_dir` was written by this very run (`run_id`), before a restart of it.

        One that cannot be read counts, so that resuming from it says what is wrong.
        """
        if not self.run_id or not self.has_checkpoint():
            return False
        try:
            content = torch.load(self.get_checkpoint_file(), map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged file can fail anywhere
            logger.warning("the last checkpoint cannot be read: %s", error)
            return True
        return bool(content.get(_RUN_KEY) == self.run_id)

    def _fill(
        self, checkpoint: LoadedCheckpoint, checkpointables: list[str] | None, ignore: Iterable[str], warm_start: bool
    ) -> dict[str, Any]:
        self.report = load_checkpoint_into(self.model, checkpoint, ignore, warm_start)
        rest = dict(checkpoint.rest)
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in rest:
                logger.info("loading %s from %s", name, checkpoint.path)
                self.checkpointables[name].load_state_dict(rest.pop(name))
            elif checkpoint.origin == OURS and checkpointables is not None:
                raise CheckpointError(f"{checkpoint.path} holds no state of {name!r}, only {sorted(rest)}")
        return rest

    def _what_is_left(self, last: str) -> str:
        """Which periodic checkpoints beside the unreadable `last` are whole, and how to go on from the newest."""
        names = [name for name in os.listdir(self.save_dir) if _PERIODIC.fullmatch(name)]
        whole = [name for name in sorted(names, reverse=True) if self._can_be_read(name, last)]
        note = os.path.join(self.save_dir, "last_checkpoint")
        if not whole:
            return f"There is no other whole checkpoint of a run in {self.save_dir}: start anew without --resume"
        return (
            f"Whole are {', '.join(whole)}; to go on from the newest of them: echo {whole[0]} > {note}, and the same "
            "command again"
        )

    def _can_be_read(self, name: str, last: str) -> bool:
        path = os.path.join(self.save_dir, name)
        if os.path.abspath(path) == os.path.abspath(last):
            return False
        try:
            read_checkpoint_file(path, mmap=True)
        except CheckpointError:
            return False
        return True

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model, the checkpointables and `kwargs` to `name`.pth, which appears only when it is whole.

        Where the parameters are split over processes, all of them have to call this, and the first one writes; the
        file is the same as that of a model in one piece.
        """
        split = has_split_parameters(self.model)
        if not self.save_dir or not (self.save_to_disk or split):
            return
        content: dict[str, Any] = {"model": self.model.state_dict()}
        content.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        content.update(kwargs)
        if split:
            content = whole(content)
        if not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        file_name = os.path.basename(path)
        periodic = [other for other in self._periodic if other != file_name]
        if _PERIODIC.fullmatch(file_name):
            periodic.append(file_name)
        if periodic:
            content[_PERIODIC_KEY] = periodic
        if self.run_id:
            content[_RUN_KEY] = self.run_id
        os.makedirs(self.save_dir, exist_ok=True)
        logger.info("saving %s", path)
        save_torch(path, content)
        self.tag_last_checkpoint(file_name)
        self._remove_old(periodic)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint is the last, at once or not at all."""
        data = last_filename_basename.encode()
        write_atomically(os.path.join(self.save_dir, "last_checkpoint"), lambda file: file.write(data))

    def _remove_old(self, periodic: list[str]) -> None:
        """Keep the last of this run's files, named oldest first."""
        first = max(0, len(periodic) - self.keep) if self.keep > 0 else 0
        self._periodic = periodic[first:]
        for name in periodic[:first]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.save_dir, name))
