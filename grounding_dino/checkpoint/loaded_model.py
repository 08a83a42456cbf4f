"""Building a model whose weights come from a checkpoint, without drawing values that the checkpoint replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer

# Methods of tensors and functions of torch.nn.init that draw, and their argument that says what to fill in instead. By
# name, which a method and a function that fills a tensor share.
_DRAWING = {"normal_": "mean", "uniform_": "from", "kaiming_uniform_": ""}


class NoDraws(TorchFunctionMode):
    """Inside, initial values are constants: no random number is drawn.

    To draw 172 million of them takes as long as to read them from a file. `normal_` gives its mean and `uniform_` its
    lower bound, with which `torch.nn.init.trunc_normal_` ends: it draws anew while values lie outside of its bounds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _DRAWING:
            return func(*args, **kwargs)
        value = args[1] if len(args) > 1 else kwargs.get(_DRAWING[name], 0.0)
        with torch.no_grad():
            return (args[0] if args else kwargs["tensor"]).fill_(value)


def build_loaded(
    build: Callable[[], nn.Module], checkpointer_of: Callable[[nn.Module], GroundingCheckpointer], source: str
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, what else the file holds) of a checkpoint of any origin.

    What the checkpoint leaves out (MODEL.WEIGHTS_IGNORE, a denoising part that its origin does not write) has the
    initial values that `build` alone gives it.

    Raises:
        CheckpointError: as :meth:`GroundingCheckpointer.load`.
    """
    with torch.random.fork_rng(devices=[]), NoDraws():  # what is drawn otherwise (`torch.randn`) leaves no trace
        model = build()
    checkpointer = checkpointer_of(model)
    rest = checkpointer.load(source, checkpointables=[])
    names = set(model.state_dict())
    left = names if checkpointer.report is None else names & {*checkpointer.report.new, *checkpointer.report.ignored}
    if left:
        initial = build().state_dict()
        model.load_state_dict({name: initial[name] for name in left}, strict=False)
    return model, rest
