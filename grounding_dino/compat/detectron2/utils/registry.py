"""Name to object registries, and import of an object by its dotted name."""

from __future__ import annotations

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """Import and return the object with the dotted name `name`, such as ``"torch.nn.Linear"``.

    Raises ImportError where nothing of that name can be imported.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"cannot locate {name!r}; give the full dotted name of an importable object")
    return found
