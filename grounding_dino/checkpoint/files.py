"""Checkpoint files as they lie on disk: .pth (zip and legacy), .pkl, .safetensors, folders of Hugging Face.

Whatever the file, its content is returned as plain dictionaries of tensors, and no code of its own is run.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from grounding_dino.checkpoint.restricted_unpickler import RESTRICTED_PICKLE, load_restricted_pickle

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

logger = logging.getLogger(__name__)

STATE_KEYS = ("model", "state_dict", "model_state_dict")  # under which the tensors of a file may lie
EXTRAS_PREFIX = "extras."  # in a .safetensors file of ours: tensors that no module of the model holds
EXTRAS_FILE = "extras.safetensors"  # the same beside a Hugging Face folder's model file
_CHUNK = 1 << 20  # bytes read at once
_LEGACY_TORCH_MAGIC = b"\x8a\x0a" + bytes.fromhex("6cfc9c46f9206aa85019")  # the number that old torch.save writes first


class CheckpointError(ValueError):
    """A checkpoint cannot be read, recognised or used; the message says which file, why and what to do."""


def read_checkpoint_file(path: str, mmap: bool = False) -> dict[str, Any]:
    """Read any checkpoint file or Hugging Face folder -> dictionary, arrays as tensors, foreign objects as stubs.

    `mmap` maps the tensors of zip files into memory instead of reading them: use it where they are copied at once.

    Raises:
        CheckpointError: the file is missing, empty, cut off, or not a checkpoint.
    """
    if os.path.isdir(path):
        return _read_folder(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no checkpoint at {path}")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(512)
    looks_wrong = _not_a_checkpoint(head, size)
    if not looks_wrong and tarfile.is_tarfile(path):  # torch.load would unpack it to disk
        looks_wrong = "it is a tar archive, as torch wrote before 2017 or as several files are packed"
    if looks_wrong:
        raise CheckpointError(f"{path} is not a checkpoint: {looks_wrong}; fetch it again")
    try:
        if path.endswith(".safetensors") or _looks_like_safetensors(head):
            return dict(_read_safetensors(path))
        if head.startswith(b"PK"):
            content = _read_torch(path, mmap)
        elif head[2:14] == _LEGACY_TORCH_MAGIC:
            content = _read_torch(path, mmap=False)
        else:
            with open(path, "rb") as file:
                content = load_restricted_pickle(file, encoding="latin1")
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        raise CheckpointError(_describe_failure(path, head, size, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return {str(key): _as_tensors(value, key in STATE_KEYS) for key, value in content.items()}


def _not_a_checkpoint(head: bytes, size: int) -> str:
    """In words what a file is that is no checkpoint at all; "" if it may be one."""
    start = head.lstrip().lower()
    if size == 0:
        return "the file is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as a failed download leaves behind"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file it points to"
    if head.startswith((b"\x1f\x8b", b"BZh")):
        return "it is a packed archive; unpack it first"
    return ""


def _looks_like_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:10] == b'{"' and head[5:8] == b"\x00\x00\x00"


def _describe_failure(path: str, head: bytes, size: int, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"{path} is cut off: a zip-format checkpoint without its end ({size} bytes are there); fetch it again"
    if not head.startswith(b"PK") and zipfile.is_zipfile(path):
        return f"{path} is damaged: a zip-format checkpoint that begins with {head[:4]!r}; fetch or write it again"
    if isinstance(error, EOFError) or "truncated" in reason or "incomplete" in reason or "exceed" in reason.lower():
        return f"{path} is cut off after {size} bytes ({reason}); fetch it again"
    return f"{path} is damaged or no checkpoint ({size} bytes, begins with {head[:12]!r}): {reason}"


def _read_torch(path: str, mmap: bool) -> Any:
    """`torch.load` that runs nothing: weights only where that suffices, else through the restricted unpickler."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.load would hand a TorchScript archive to torch.jit.load, code and all
            if any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in archive.namelist()):
                raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint; save its state_dict instead")
            _check_sums(path, archive)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        logger.debug("%s: %s; reading it with stubs", path, error)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=RESTRICTED_PICKLE, mmap=mmap)


def _check_sums(path: str, archive: zipfile.ZipFile) -> None:
    """See that every entry has the bytes that were written, which torch.load does not: flipped ones become weights.

    It reads the file once more, at about 1 GB/s, and from then on it is in the system's memory. `torch.save` can be
    told to leave the checksums out; then no entry has one that fits.
    """
    entries = [entry for entry in archive.infolist() if entry.file_size]
    bad = [entry.filename for entry in entries if not _has_its_bytes(archive, entry)]
    if bad and len(bad) < len(entries):
        raise CheckpointError(
            f"{path} is damaged: {len(bad)} of its {len(entries)} entries are not what was written "
            f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}), so that weights or other state would be wrong; "
            "fetch or write it again"
        )


def _has_its_bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as file:
            while file.read(_CHUNK):
                pass
    except (zipfile.BadZipFile, zlib.error):
        return False
    return True


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole .safetensors file ({error}); fetch it again") from error


def _read_folder(folder: str) -> dict[str, Any]:
    """The tensors of a Hugging Face folder: one model file, or the shards that its index names."""
    single = [os.path.join(folder, name) for name in ("model.safetensors", "pytorch_model.bin")]
    indices = [f"{path}.index.json" for path in single]
    for path in single:
        if os.path.isfile(path):
            tensors = read_checkpoint_file(path)
            break
    else:
        index = next((path for path in indices if os.path.isfile(path)), None)
        if index is None:
            raise CheckpointError(
                f"the folder {folder} holds neither model.safetensors nor pytorch_model.bin nor an index of either"
            )
        tensors = _read_shards(folder, index)
    extras = os.path.join(folder, EXTRAS_FILE)
    if os.path.isfile(extras):
        tensors = {"state_dict": tensors, "extras": _read_safetensors(extras)}
    return tensors


def _read_shards(folder: str, index: str) -> dict[str, Any]:
    with open(index, encoding="utf-8") as file:
        try:
            names = sorted(set(json.load(file)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not an index of shards: {error}") from error
    tensors: dict[str, Any] = {}
    for name in names:
        if os.path.basename(name) != name:
            raise CheckpointError(f"{index} names a shard outside its folder: {name!r}")
        tensors.update(read_checkpoint_file(os.path.join(folder, name)))
    return tensors


def _as_tensors(value: Any, inside: bool) -> Any:
    """A numpy array as a tensor; with `inside` those of a dictionary. Others (a trainer's state) stay as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value))
    if inside and isinstance(value, Mapping):
        return {key: _as_tensors(item, False) for key, item in value.items()}
    return value
