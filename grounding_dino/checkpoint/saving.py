"""Writing checkpoints: whole or not at all, and in any known origin's format."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from grounding_dino.checkpoint.files import EXTRAS_PREFIX, CheckpointError
from grounding_dino.checkpoint.origins import OURS, format_of, model_of
from grounding_dino.checkpoint.rules import StateDict

import safetensors.torch
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\..+\.writing-(\d+)$")


def write_atomically(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears under `path` only when it is whole and on the disk.

    A full disk, an exception or a kill leaves whatever stood under `path` before.
    """
    folder, name = os.path.split(os.path.abspath(path))
    remove_abandoned_files(folder)
    temporary = os.path.join(folder, f".{name}.writing-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    if os.name != "posix":  # only there can a folder be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned_files(folder: str) -> None:
    """Remove what killed processes of this machine left half-written in `folder`."""
    for name in os.listdir(folder):
        match = _TEMPORARY.match(name)
        if match and not _is_running(int(match.group(1))):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))
                logger.info("removed the half-written %s", os.path.join(folder, name))


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # os.kill ends processes there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def save_torch(path: str, content: Mapping[str, Any]) -> None:
    """`torch.save`, whole or not at all. The content can be read back with `weights_only=True` if it is plain."""
    write_atomically(path, lambda file: torch.save(dict(content), file))


def save_safetensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    """A .safetensors file, whole or not at all."""
    # the format refuses tensors that share memory or are strided
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, metadata={"format": "pt"})
    write_atomically(path, lambda file: file.write(data))


def translate_for(
    origin: str, state: Mapping[str, Tensor], extras: Mapping[str, Tensor]
) -> tuple[StateDict, StateDict]:
    """(tensors in the names of `origin`, what that origin has no place for in our names).

    Raises:
        CheckpointError: a parameter of the model has no name in that format.
    """
    if origin == OURS:
        return dict(state), dict(extras)
    form = format_of(origin, model_of(state))
    table = form.table_of(state)
    translation = table.to_theirs({**state, **extras})
    aside = {name: {**state, **extras}[name] for name in translation.unknown}
    homeless = [n for n in aside if n not in extras and not any(re.match(pattern, n) for pattern in table.absent)]
    if homeless:
        raise CheckpointError(
            f"{len(homeless)} parameters have no name in the {origin} format, among them {', '.join(homeless[:5])}; "
            f"that format knows {form.model} with the parts and backbones it was published with"
        )
    return translation.state, aside


def save_checkpoint(
    path: str,
    state: Mapping[str, Tensor],
    extras: Mapping[str, Tensor] | None = None,
    to: str = OURS,
    half: bool = False,
) -> None:
    """Write the model `state` (our names) in the format `to`; a Hugging Face folder is written by `huggingface.py`.

    Ours is a .safetensors or a .pth, as `path` ends; others are .pth files of their authors' layout. `half` stores
    floating-point tensors in 16 bits. What the format has no place for lies in the file under "extras".
    """
    tensors, aside = translate_for(to, state, extras or {})
    if half:
        tensors, aside = to_half(tensors), to_half(aside)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if path.endswith(".safetensors"):
        if to != OURS:
            raise CheckpointError(f"the {to} format is a .pth file, but the output is {path}")
        save_safetensors(path, {**tensors, **{EXTRAS_PREFIX + name: tensor for name, tensor in aside.items()}})
        return
    if not path.endswith((".pth", ".pt")):
        raise CheckpointError(f"the output {path} should end in .pth" + (" or .safetensors" if to == OURS else ""))
    form = None if to == OURS else format_of(to, model_of(state))
    prefix, key = (form.prefix, form.state_key) if form else ("", "model")
    content: dict[str, Any] = {key: {prefix + name: tensor for name, tensor in tensors.items()}}
    if aside:
        content["extras"] = aside
    save_torch(path, content)


def to_half(tensors: Mapping[str, Tensor]) -> StateDict:
    """Floating-point tensors in 16 bits, others as they are; refuses values that 16 bits cannot hold."""
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name in _overflowing(tensors, halved):
        raise CheckpointError(f"{name} holds values beyond 65504, the largest of 16 bits; leave out --half")
    return halved


def _overflowing(tensors: Mapping[str, Tensor], halved: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.isfinite().all() and not halved[name].isfinite().all():
            yield name
