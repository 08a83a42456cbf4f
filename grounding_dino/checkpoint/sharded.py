"""Tensors that are split over processes (FSDP2's DTensors): whole ones for files, and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_split(tensor: Any) -> bool:
    """Whether a tensor is spread over the processes: one of `torch.distributed.tensor.DTensor`."""
    package = sys.modules.get("torch.distributed.tensor")  # slow to import, and without it there is none
    return package is not None and isinstance(tensor, package.DTensor)


def has_split_parameters(model: nn.Module) -> bool:
    """Whether parameters of the model are split over the processes."""
    return any(is_split(parameter) for parameter in model.parameters())


def whole(value: Any) -> Any:
    """A copy of nested dictionaries and lists in which each split tensor is whole, and on the CPU.

    Called by all processes together, which gather it; other values are passed through.
    """
    if is_split(value):
        return value.detach().full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value


def whole_scalar(value: Tensor) -> Tensor:
    """A number that may be spread over the processes (such as a norm of split gradients), the same in each of them."""
    return getattr(value, "full_tensor")() if is_split(value) else value  # noqa: B009  (a DTensor's alone)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is split."""
    return getattr(tensor, "to_local")() if is_split(tensor) else tensor  # noqa: B009  (a DTensor's alone)


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole `tensor` that every process has, split as `like` is; no communication."""
    if not is_split(like) or is_split(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def accept_whole_tensors(model: nn.Module) -> None:
    """Let `load_state_dict` of the model, and of each module in it, take whole tensors for its split parameters."""
    for module in model.modules():
        if any(is_split(parameter) for parameter in module.parameters(recurse=False)):
            module.register_load_state_dict_pre_hook(_split_entries)


def _split_entries(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        given = state_dict.get(prefix + name)
        if isinstance(given, Tensor) and given.shape == parameter.shape:  # else torch names the shapes
            state_dict[prefix + name] = split_like(given, parameter)


def split_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Split the state that an optimizer has loaded from whole tensors as its parameters are."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape == parameter.shape:
                state[key] = split_like(value, parameter)
