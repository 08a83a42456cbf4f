"""The registry of mappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """Mappers: `Mapper(cfg, is_train)` gives a callable from a record to a sample, or None."""


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """The mapper that `INPUT.MAPPER` names, for training or testing.

    Raises:
        ValueError: there is no such mapper.
    """
    if cfg.INPUT.MAPPER not in MAPPER_REGISTRY:
        raise ValueError(f"unknown INPUT.MAPPER {cfg.INPUT.MAPPER!r}; choose from {sorted(dict(MAPPER_REGISTRY))}")
    return MAPPER_REGISTRY.get(cfg.INPUT.MAPPER)(cfg, is_train)
