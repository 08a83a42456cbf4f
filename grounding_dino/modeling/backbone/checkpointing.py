"""Activation checkpointing for backbones that have none of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Let each block of a backbone forget its activations in training, and compute them again in the backward pass.

    Blocks are the composed modules in a sequence of a stage, which is how timm and Detectron2 build theirs. Names of
    parameters stay.

    Raises:
        ValueError: there are none.
    """
    found = list(_blocks(backbone))
    if not found:
        raise ValueError(
            f"{type(backbone).__name__} has no sequences of blocks to checkpoint; set ACTIVATION_CHECKPOINTING_ON of "
            "the backbone to False"
        )
    for block in found:
        # copying a model copies what is bound to the block along with it, as it would not with a closure
        block.forward = partial(_recomputed, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        is_block = isinstance(module, (nn.Sequential, nn.ModuleList)) and any(child.children())
        if is_block and not isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield child
        else:
            yield from _blocks(child)


def _recomputed(forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`forward` of a block, recomputed in the backward pass."""
    block = forward.__self__
    if not (block.training and torch.is_grad_enabled()):
        return forward(x, *args, **kwargs)
    version = x._version
    contexts = partial(_contexts, block)
    result = checkpoint(forward, x, *args, use_reentrant=False, context_fn=contexts, **kwargs)
    if x._version != version:
        raise ValueError(
            f"the block {type(block).__name__} of the backbone changes its input, so it cannot be computed again; set "
            "ACTIVATION_CHECKPOINTING_ON of the backbone to False"
        )
    return result


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Within it batch norms do not count a batch, which they have counted before."""
    norms = [m for m in block.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # no momentum is a mean over all batches, and 0.0 keeps what is there
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
