"""Training: the loop, its hooks, the default workflow from a config, and several processes."""

import importlib
from typing import TYPE_CHECKING

from .launch import launch

if TYPE_CHECKING:
    from . import hooks
    from ._arguments import default_argument_parser
    from ._setup import create_ddp_model, default_setup, default_writers
    from .defaults import DefaultPredictor, DefaultTrainer
    from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "AMPTrainer",
    "DefaultPredictor",
    "DefaultTrainer",
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
]

# Imported on use: a script asks for its arguments before it needs torch.
_MODULES = {
    **dict.fromkeys(("AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"), "train_loop"),
    **dict.fromkeys(("DefaultPredictor", "DefaultTrainer"), "defaults"),
    **dict.fromkeys(("create_ddp_model", "default_setup", "default_writers"), "_setup"),
    "default_argument_parser": "_arguments",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    if name in ("defaults", "hooks", "train_loop"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
