"""Training by several processes: each with the whole model (DDP), or with a part of every parameter (FSDP2)."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from grounding_dino.checkpoint.report import listed
from grounding_dino.checkpoint.sharded import accept_whole_tensors, has_split_parameters, split_optimizer_state

import torch
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

DATA_PARALLEL = ("ddp", "fsdp2")
# Classes whose modules are gathered, and given back, one after the other; what is in none of them stays gathered from
# the beginning of a step to its end.
LAYERS = (
    "SwinBlock",
    "BertLayer",
    "EncoderLayer",
    "DecoderLayer",
    "DyHeadBlock",
    "BottleneckBlock",
    "BasicBlock",
    "Block",
)


def split_parameters(model: nn.Module, cfg: CfgNode) -> None:
    """With SOLVER.DATA_PARALLEL "fsdp2" and several processes, leave each its part of every parameter, in place.

    To be called before the optimizer is built, whose state then is split as well. Parameters keep their names, and
    `load_state_dict` takes whole tensors as before.

    Raises:
        ValueError: an unknown way, a torch that is too old for it, or a parameter that has no axis to split.
    """
    if cfg.SOLVER.DATA_PARALLEL not in DATA_PARALLEL:
        raise ValueError(f"unknown SOLVER.DATA_PARALLEL {cfg.SOLVER.DATA_PARALLEL!r}; choose from {DATA_PARALLEL}")
    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if cfg.SOLVER.DATA_PARALLEL == "fsdp2" and scalars:
        raise ValueError(
            f"SOLVER.DATA_PARALLEL 'fsdp2' splits parameters along their first axis, and {listed(scalars, 2)} of this "
            "model are single numbers; set it to 'ddp', and where memory is short the ACTIVATION_CHECKPOINTING_ON of "
            "the model's parts"
        )
    if cfg.SOLVER.DATA_PARALLEL != "fsdp2" or comm.get_world_size() == 1:
        return
    fsdp = _fsdp()
    mesh = torch.distributed.init_device_mesh(torch.device(cfg.MODEL.DEVICE).type, (comm.get_world_size(),))
    layers = [module for module in model.modules() if type(module).__name__ in LAYERS]
    for layer in layers:
        fsdp.fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fsdp.fully_shard(model, mesh=mesh, reshard_after_forward=False)
    accept_whole_tensors(model)
    # Each loss is a view of a tensor of losses. That would matter if they were changed in place, and they are not.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    logger.info("FSDP2: parameters are split over %d processes, %d layers apart", comm.get_world_size(), len(layers))


def distribute(model: nn.Module, optimizer: torch.optim.Optimizer, cfg: CfgNode) -> nn.Module:
    """The model as the training step calls it: in DistributedDataParallel, or as :func:`split_parameters` left it."""
    if cfg.SOLVER.DATA_PARALLEL == "fsdp2":
        optimizer.register_load_state_dict_post_hook(split_optimizer_state)
        return model
    if torch.device(cfg.MODEL.DEVICE).type == "cuda":
        return create_ddp_model(model, broadcast_buffers=False)
    return create_ddp_model(model, broadcast_buffers=False, device_ids=None)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it every process has all parameters of the model, so that it computes without the others.

    Evaluations need that: the processes have unequal numbers of pictures. To be entered and left by all of them;
    without FSDP2 it does nothing.
    """
    units: list[Any] = []
    if has_split_parameters(model):
        units = [unit for unit in model.modules() if isinstance(unit, _fsdp().FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def _fsdp() -> Any:
    from torch.distributed import fsdp

    if not hasattr(getattr(fsdp, "FSDPModule", None), "set_reshard_after_forward"):
        raise ValueError(
            f"SOLVER.DATA_PARALLEL 'fsdp2' does not work with torch {torch.__version__}; install a newer one, or set "
            "it to 'ddp'"
        )
    return fsdp
